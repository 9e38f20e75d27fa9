//! One scrape of `/metrics`: in the format that the scraper asks for, and shared where answers pile up unread.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};

use crate::metrics::Format;

/// Answers that may be unread at one time and still each have a text of their own. Honest scrapers are few.
const OWN_TEXTS_MAX: usize = 8;

/// How long the newest text is handed out again beyond that.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// What was told last, for those who ask while many have not read theirs: a text is some ten thousand bytes, and a request
/// for it that is never read costs its sender next to nothing.
#[derive(Debug, Default)]
pub(super) struct Scrapes {
    unread: Arc<AtomicUsize>,
    last: [Mutex<Option<(Instant, Bytes)>>; 2],
}

/// A text on its way to its readers.
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
    /// A text that is new, or while many are unread, of the last second.
    pub(super) fn text(&self, format: Format, now: Instant, encode: impl FnOnce() -> String) -> Bytes {
        let mut last = self.last[format as usize].lock().unwrap_or_else(PoisonError::into_inner);
        // Kept for no longer than it may be needed, and not counted as unread then.
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

/// What an answer in a format says that it is.
pub(super) fn content_type(format: Format) -> HeaderValue {
    HeaderValue::from_static(match format {
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Format::Plain => "text/plain; version=0.0.4; charset=utf-8",
    })
}

/// The format that the scraper likes best; OpenMetrics where it likes both the same, or says nothing that helps.
pub(super) fn format(headers: &HeaderMap) -> Format {
    let accepts: Vec<Range<'_>> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(Range::read)
        .collect();
    let liking = |main, sub, versions: &[&str]| {
        let fitting = accepts.iter().filter_map(|range| Some((range.fits(main, sub, versions)?, range.quality)));
        // The nearest description counts, and the best of those that are as near (RFC 9110 section 12.5.1).
        fitting.max_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal)).map_or(0.0, |(_, quality)| quality)
    };
    let plain = liking("text", "plain", &["0.0.4"]);
    let open = liking("application", "openmetrics-text", &["1.0.0", "0.0.1"]);
    if plain > open { Format::Plain } else { Format::OpenMetrics }
}

/// One of the things that an `Accept` header lists.
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

    /// How near it describes a media type of one of these versions, if it does.
    fn fits(&self, main: &str, sub: &str, versions: &[&str]) -> Option<u8> {
        let is = |said: &str, meant: &str| said.eq_ignore_ascii_case(meant);
        match (self.main, self.sub, self.version) {
            ("*", "*", _) => Some(0),
            (said, "*", _) if is(said, main) => Some(1),
            (said, kind, None) if is(said, main) && is(kind, sub) => Some(2),
            (said, kind, Some(version)) if is(said, main) && is(kind, sub) => versions.contains(&version).then_some(3),
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
    fn a_scraper_is_answered_in_the_format_that_it_likes_best() {
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
    fn answers_that_nobody_reads_share_one_text_and_any_other_is_new() {
        let (scrapes, start, mut told) = (Scrapes::default(), Instant::now(), 0);
        let mut scrape = |at: Duration| {
            scrapes.text(Format::OpenMetrics, start + at, || {
                told += 1;
                told.to_string()
            })
        };
        for expected in 1..=20 {
            assert_eq!(scrape(Duration::ZERO), expected.to_string(), "each is read before the next");
        }
        let unread: Vec<Bytes> = (0..1000).map(|_| scrape(Duration::ZERO)).collect();
        let texts = unread.iter().collect::<std::collections::HashSet<_>>().len();
        assert_eq!(texts, OWN_TEXTS_MAX);
        assert_eq!(scrape(SHARED_FOR), "29", "what is shared is not old");
        assert_eq!(scrape(SHARED_FOR), "29");
        drop(unread);
        assert_eq!(scrape(SHARED_FOR), "30", "the others have read theirs");
    }
}
