//! Reads JSON as the legacy service did, so that its clients and callers need not change.
//!
//! The legacy service used Go's `encoding/json`. Keys match in any letter case. Unknown keys are skipped. The last of a
//! repeated key wins. `null` leaves a field empty. Bytes that are not UTF-8 and lone surrogates become U+FFFD. Anything
//! after the first value is ignored. One rule is not kept: Go's limit of 10,000 nested values. Nested values are
//! skipped here without using the stack, so deep nesting does no harm.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// Why a JSON text was not understood. Contains no part of the text, which may be a token or a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not understood at line {line} column {column}")]
pub(crate) struct NotUnderstood {
    line: usize,
    column: usize,
}

/// Returns the values of the named fields, in the order of the names. A missing field gives an empty string.
pub(crate) fn fields<const N: usize>(json: &[u8], names: [&str; N]) -> Result<[String; N], NotUnderstood> {
    fields_of(&text(json), names).map(|values| values.map(Cow::into_owned))
}

/// The same from what [`text`] returned, borrowed from there unless something in a value is escaped.
pub(crate) fn fields_of<'a, const N: usize>(
    text: &'a str,
    names: [&str; N],
) -> Result<[Cow<'a, str>; N], NotUnderstood> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    // `Deserializer::end` is not called, because anything after the first value is ignored.
    Object { names }
        .deserialize(&mut deserializer)
        .map_err(|error| NotUnderstood { line: error.line(), column: error.column() })
}

/// Returns the JSON as text that serde_json accepts, with the same replacements that Go makes.
pub(crate) fn text(json: &[u8]) -> Cow<'_, str> {
    replace_lone_surrogates(replace_invalid(json))
}

/// Replaces each byte that belongs to no UTF-8 sequence with one U+FFFD, as Go does. Rust's own lossy conversion can
/// replace several bytes with one U+FFFD.
fn replace_invalid(json: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(json) {
        Ok(text) => text.into(),
        Err(_) => {
            let mut text = String::with_capacity(json.len() + 16);
            for chunk in json.utf8_chunks() {
                text.push_str(chunk.valid());
                text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
            }
            text.into()
        }
    }
}

/// Replaces an escaped surrogate without its other half with an escaped U+FFFD, as Go does. serde_json would refuse it.
fn replace_lone_surrogates(text: Cow<'_, str>) -> Cow<'_, str> {
    let mut lone = Vec::new();
    let mut at = 0;
    // A backslash outside a string is not valid JSON, so a replacement there does no harm.
    while let Some(found) = text[at..].find('\\') {
        at += found;
        match (surrogate(&text, at), surrogate(&text, at + 6)) {
            (Some(Half::Leading), Some(Half::Trailing)) => at += 12,
            (Some(_), _) => {
                lone.push(at);
                at += 6;
            }
            // Skips the backslash and the character that it escapes.
            (None, _) => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    if lone.is_empty() {
        return text;
    }
    let mut text = text.into_owned();
    lone.into_iter().for_each(|at| text.replace_range(at..at + 6, "\\ufffd"));
    text.into()
}

enum Half {
    Leading,
    Trailing,
}

/// The half of a surrogate pair that is escaped at this position, if any.
fn surrogate(text: &str, at: usize) -> Option<Half> {
    let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
    match u16::from_str_radix(digits, 16).ok()? {
        0xd800..=0xdbff => Some(Half::Leading),
        0xdc00..=0xdfff => Some(Half::Trailing),
        _ => None,
    }
}

struct Object<'a, const N: usize> {
    names: [&'a str; N],
}

/// A key or a value. Borrowed where it can be: there are six of them in a push.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de, const N: usize> DeserializeSeed<'de> for Object<'_, N> {
    type Value = [Cow<'de, str>; N];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Object<'_, N> {
    type Value = [Cow<'de, str>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(std::array::from_fn(|_| Cow::default()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut values = std::array::from_fn(|_| Cow::default());
        while let Some(Text(key)) = object.next_key()? {
            match self.names.iter().position(|name| same_letters(&key, name)) {
                Some(field) => {
                    if let Some(Text(value)) = object.next_value()? {
                        values[field] = value;
                    }
                }
                None => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(values)
    }
}

/// Whether the key equals the name under Unicode simple case folding. The name must consist of ASCII letters: apart
/// from the other letter case, only the long s and the Kelvin sign fold to an ASCII letter.
pub(crate) fn same_letters(key: &str, name: &str) -> bool {
    key == name || key.chars().map(fold).eq(name.chars().map(fold))
}

fn fold(c: char) -> char {
    match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: impl AsRef<[u8]>) -> Option<[String; 2]> {
        fields(json.as_ref(), ["token", "userId"]).ok()
    }

    #[test]
    fn reads_what_go_reads() {
        let cases: [(&[u8], [&str; 2]); 20] = [
            (br#"{"token":"t","userId":"u"}"#, ["t", "u"]),
            (br#"{"TOKEN":"t","USERID":"u"}"#, ["t", "u"]),
            ("{\"to\u{212a}en\":\"t\",\"u\u{17f}erid\":\"u\"}".as_bytes(), ["t", "u"]),
            (br#"{"\u0074oken":"t"}"#, ["t", ""]),
            (br#"{"other":[{"a":1e999}],"token":"t"}"#, ["t", ""]),
            (br#"{"token":"a","Token":"b"}"#, ["b", ""]),
            (br#"{"token":"a","token":null}"#, ["a", ""]),
            (br#"{"token":null}"#, ["", ""]),
            (br#"{"token":"t"} and what follows"#, ["t", ""]),
            (br#"{"token":"t"}{"token":"u"}"#, ["t", ""]),
            (b" \n\t{\"token\":\"t\"}", ["t", ""]),
            (b"null", ["", ""]),
            (b"{}", ["", ""]),
            (br#"{"token":"\ud83d\ude00"}"#, ["\u{1f600}", ""]),
            (br#"{"token":"a\ud800b"}"#, ["a\u{fffd}b", ""]),
            (br#"{"token":"\ud83d\u0041\udc00"}"#, ["\u{fffd}A\u{fffd}", ""]),
            (br#"{"token":"\ud83d\ud83d\ude00"}"#, ["\u{fffd}\u{1f600}", ""]),
            (br#"{"token":"\\ud83d\\"}"#, ["\\ud83d\\", ""]),
            (b"{\"token\":\"a\xffb\"}", ["a\u{fffd}b", ""]),
            (b"{\"token\":\"\xe2\x82\",\"userId\":\"\xed\xa0\x80\"}", ["\u{fffd}\u{fffd}", "\u{fffd}\u{fffd}\u{fffd}"]),
        ];
        for (json, expected) in cases {
            assert_eq!(read(json), Some(expected.map(str::to_owned)), "{}", String::from_utf8_lossy(json));
        }
    }

    #[test]
    fn unknown_values_may_nest_to_any_depth() {
        let deep = format!("{{\"x\":{}1{},\"token\":\"t\"}}", "[".repeat(5000), "]".repeat(5000));
        assert_eq!(read(deep), Some(["t".to_owned(), String::new()]));
    }

    #[test]
    fn refuses_what_go_refuses() {
        for json in [
            "",
            " ",
            "hello",
            "[]",
            "7",
            "\"text\"",
            "true",
            "{\"token\":7}",
            "{\"token\":{}}",
            "{\"token\":[\"t\"]}",
            "{\"token\":true}",
            "{\"token\":\"t\"",
            "{\"token\":\"t\",}",
            "{token:\"t\"}",
            "{'token':'t'}",
            "{\"token\":\"a\nb\"}",
            "{\"token\":\"\\x\"}",
            "{\"other\":01,\"token\":\"t\"}",
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }

    #[test]
    fn an_error_says_where_and_holds_no_secret() {
        let error = fields(b"{\"token\": s3cret}", ["token"]).expect_err("not JSON");
        assert_eq!(error.to_string(), "not understood at line 1 column 11");
    }
}
