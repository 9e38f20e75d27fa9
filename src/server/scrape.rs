//! Answers scrapes of `/metrics` in the format that the scraper requests. If many answers are unread, further scrapes
//! share one text.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};

use crate::metrics::Format;

/// The number of unread answers up to which each has its own text. There are only a few honest scrapers.
const OWN_TEXTS_MAX: usize = 8;

/// How long the newest text is reused past that number.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// The unread answers, and the newest text of each format. The text is shared while many answers are unread, because it
/// is some ten thousand bytes and a request whose answer is never read costs its sender next to nothing.
#[derive(Debug, Default)]
pub(super) struct Scrapes {
    unread: Arc<AtomicUsize>,
    last: [Mutex<Option<(Instant, Bytes)>>; 2],
}

/// A text in unread answers.
struct Text {
    text: String,
    unread: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        self.unread.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Scrapes {
    /// Returns a new text, or one of the last second while many answers are unread.
    pub(super) fn text(&self, format: Format, now: Instant, encode: impl FnOnce() -> String) -> Bytes {
        let mut last = self.last[format as usize].lock().unwrap_or_else(PoisonError::into_inner);
        // Drops the shared text as soon as it is not needed, so that it no longer counts as unread.
        if self.unread.load(Ordering::Relaxed) < OWN_TEXTS_MAX {
            *last = None;
        }
        if let Some((at, text)) = &*last
            && now.saturating_duration_since(*at) < SHARED_FOR
        {
            return text.clone();
        }
        self.unread.fetch_add(1, Ordering::Relaxed);
        let text = Bytes::from_owner(Text { text: encode(), unread: self.unread.clone() });
        if self.unread.load(Ordering::Relaxed) >= OWN_TEXTS_MAX {
            *last = Some((now, text.clone()));
        }
        text
    }
}

/// The content type of a format.
pub(super) fn content_type(format: Format) -> HeaderValue {
    HeaderValue::from_static(match format {
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Format::Plain => "text/plain; version=0.0.4; charset=utf-8",
    })
}

/// The format that the scraper prefers. OpenMetrics if it prefers both equally or states no usable preference.
pub(super) fn format(headers: &HeaderMap) -> Format {
    let accepts: Vec<Range<'_>> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(Range::read)
        .collect();
    let quality = |main, sub, versions: &[&str]| {
        let fitting = accepts.iter().filter_map(|range| Some((range.matches(main, sub, versions)?, range.quality)));
        // The most specific range counts, and the best of equally specific ones (RFC 9110 section 12.5.1).
        fitting.max_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal)).map_or(0.0, |(_, quality)| quality)
    };
    let plain = quality("text", "plain", &["0.0.4"]);
    let open = quality("application", "openmetrics-text", &["1.0.0", "0.0.1"]);
    if plain > open { Format::Plain } else { Format::OpenMetrics }
}

/// One media range of an `Accept` header.
struct Range<'a> {
    main: &'a str,
    sub: &'a str,
    version: Option<&'a str>,
    quality: f32,
}

impl<'a> Range<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (main, sub) = parts.next()?.split_once('/')?;
        let mut range = Self { main, sub, version: None, quality: 1.0 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            if name.eq_ignore_ascii_case("q") {
                range.quality = value.parse().ok().filter(|quality| (0.0..=1.0).contains(quality))?;
            } else if name.eq_ignore_ascii_case("version") {
                range.version = Some(value.trim_matches('"'));
            }
        }
        Some(range)
    }

    /// How specifically the range matches a media type in one of these versions. `None` if it does not match.
    fn matches(&self, main: &str, sub: &str, versions: &[&str]) -> Option<u8> {
        let is = |given: &str, expected: &str| given.eq_ignore_ascii_case(expected);
        match (self.main, self.sub, self.version) {
            ("*", "*", _) => Some(0),
            (given, "*", _) if is(given, main) => Some(1),
            (given, kind, None) if is(given, main) && is(kind, sub) => Some(2),
            (given, kind, Some(version)) if is(given, main) && is(kind, sub) => {
                versions.contains(&version).then_some(3)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(lines: &[&'static str]) -> Format {
        format(&lines.iter().map(|line| (ACCEPT, HeaderValue::from_static(line))).collect())
    }

    #[test]
    fn a_scraper_gets_the_format_that_it_prefers() {
        for open in [
            &[][..],
            &["*/*"],
            &["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
            &["application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
            &["application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5"],
            &["text/plain;version=0.0.4;q=0.5", "Application/OpenMetrics-Text; version=1.0.0"],
            &["text/plain;version=1.0.0;q=0.9,*/*;q=0.2"],
            &["text/plain;q=0,*/*"],
            &["nonsense, /, text/plain;q=high"],
        ] {
            assert_eq!(asked(open), Format::OpenMetrics, "{open:?}");
        }
        for plain in [
            &["text/plain"][..],
            &["TEXT/Plain; Version=\"0.0.4\""],
            &["text/*"],
            &["text/plain;version=0.0.4,*/*;q=0.1"],
            &[
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;q=0.7",
                "text/plain;version=0.0.4;q=0.3",
            ],
            &["application/openmetrics-text;version=1.0.0;q=0.3", "text/plain ; version=0.0.4 ; q=0.7"],
            &["application/openmetrics-text;q=0, */*"],
            &["application/openmetrics-text;version=9.0.0,text/plain;q=0.1"],
        ] {
            assert_eq!(asked(plain), Format::Plain, "{plain:?}");
        }
    }

    #[test]
    fn many_unread_answers_share_one_text_and_any_other_is_new() {
        let (scrapes, start, mut texts) = (Scrapes::default(), Instant::now(), 0);
        let mut scrape = |at: Duration| {
            scrapes.text(Format::OpenMetrics, start + at, || {
                texts += 1;
                texts.to_string()
            })
        };
        for expected in 1..=20 {
            assert_eq!(scrape(Duration::ZERO), expected.to_string(), "each is read before the next");
        }
        let unread: Vec<Bytes> = (0..1000).map(|_| scrape(Duration::ZERO)).collect();
        let different = unread.iter().collect::<std::collections::HashSet<_>>().len();
        assert_eq!(different, OWN_TEXTS_MAX);
        assert_eq!(scrape(SHARED_FOR), "29", "what is shared is not old");
        assert_eq!(scrape(SHARED_FOR), "29");
        drop(unread);
        assert_eq!(scrape(SHARED_FOR), "30", "the others have read theirs");
    }
}
