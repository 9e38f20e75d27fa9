//! The headers that a check asks for, kept as texts: nothing of the request that they came in is kept alive.

use std::fmt;

use http::HeaderMap;

/// The headers of a request that a check asked for, by [`headers_wanted`](super::TokenAuthenticator::headers_wanted). Names
/// are in small letters. A value that is not UTF-8 is left out. The `Debug` output has the names alone.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Headers(Vec<(Box<str>, Box<str>)>);

/// For what came without any.
pub(super) static NONE: Headers = Headers(Vec::new());

impl Headers {
    /// Copies the headers of these names.
    pub(crate) fn of(request: &HeaderMap, wanted: &[String]) -> Self {
        let lines = wanted.iter().flat_map(|name| {
            let values = request.get_all(name.as_str()).iter();
            values.filter_map(|value| Some((name.as_str().into(), std::str::from_utf8(value.as_bytes()).ok()?.into())))
        });
        Self(lines.collect())
    }

    /// The first value of a header, by its name in small letters.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Every header with its value: in the order in which they were asked for, and those of one name as they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether the request had none of the headers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_what_was_asked_for_is_kept_and_debug_output_has_no_value() {
        let mut request = HeaderMap::new();
        for (name, value) in
            [("cookie", &b"session=s3cret"[..]), ("cookie", b"theme=dark"), ("x-other", b"o"), ("x-binary", b"\xff")]
        {
            request.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        let wanted = ["x-binary", "cookie", "x-missing", "not a name"].map(str::to_owned);
        let headers = Headers::of(&request, &wanted);
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(all, [("cookie", "session=s3cret"), ("cookie", "theme=dark")]);
        assert_eq!((headers.get("cookie"), headers.get("x-other")), (Some("session=s3cret"), None));
        assert_eq!(format!("{headers:?}"), "{\"cookie\", \"cookie\"}");
        assert!(Headers::of(&request, &[]).is_empty());
    }
}
