//! The dialect of the session protocol `pushgate.v1.json`: every text of it, read and worded.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use crate::auth::{Token, TokenError};
use crate::close::CloseReason;
use crate::delivery::Ticket;
use crate::message::{ConnectionId, Event, ResumeToken};

use super::{Dialect, Head, OPCODE_TEXT};

/// The subprotocol by which a client asks for sessions.
pub(crate) const SESSION_PROTOCOL: &str = "pushgate.v1.json";

/// The longest token, in bytes. Signed tokens with a few claims stay below it.
pub(crate) const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The longest resume token, in bytes, of this gateway or another.
const RESUME_TOKEN_BYTES_MAX: usize = 256;

/// The largest number in a frame: from there on not every whole number is a double.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// The session protocol.
pub(crate) struct Session;

impl Dialect for Session {
    fn read(&self, data: &[u8]) -> Result<Request, RequestError> {
        Request::read(data)
    }

    fn word(&self, frame: &ServerFrame<'_>) -> Option<String> {
        Some(frame.to_json())
    }

    fn has_sessions(&self) -> bool {
        true
    }
}

/// `{"type":"push","seq":` and `,` with the longest number between them.
pub(super) const PUSH_HEAD_BYTES_MAX: usize = PUSH_HEAD.len() + 20 + 1;
const PUSH_HEAD: &str = r#"{"type":"push","seq":"#;

/// What stands before the shared part of a message's frame, which has this many bytes.
pub(super) fn push_head(seq: u64, tail: usize) -> Head {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = seq;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let digits = &digits[at..];
    let mut head = Head::of(OPCODE_TEXT, PUSH_HEAD.len() + digits.len() + 1 + tail);
    head.append(PUSH_HEAD.as_bytes());
    head.append(digits);
    head.append(b",");
    head
}

/// The JSON of a message's frame from behind `"seq":N,` to its end.
pub(super) fn push_tail(ticket: &Ticket) -> Bytes {
    #[derive(Serialize)]
    struct Tail<'a> {
        id: String,
        event: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        binary: Option<String>,
    }
    let payload = ticket.payload();
    let message = std::str::from_utf8(payload).ok().filter(|_| ticket.is_text());
    let tail = Tail {
        id: ticket.message_id().to_string(),
        event: ticket.event().as_str(),
        message,
        binary: message.is_none().then(|| BASE64_STANDARD.encode(payload)),
    };
    let mut json = Vec::with_capacity(payload.len() + 96);
    serde_json::to_writer(&mut json, &tail).expect("strings are always JSON");
    // Without the brace, which stands before the number.
    Bytes::from(json).slice(1..)
}

/// The frame that tells that the messages with these numbers are lost.
pub(super) fn gap(from: u64, to: u64) -> String {
    format!(r#"{{"type":"gap","from":{from},"to":{to}}}"#)
}

/// What a client asks for.
#[derive(Debug)]
pub(crate) enum Request {
    Bind { token: Token, event: Event, resume: Option<Resume> },
    Unbind { event: Event },
    Ack { seq: u64 },
    Refresh { token: Token },
    Ping,
}

/// Where a client wants to go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resume {
    /// `None` for a text that is no token, which is a session that is not known.
    pub(crate) token: Option<ResumeToken>,
    pub(crate) seq: u64,
}

/// What a client is told when its request is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("not a JSON object with a string `type`, or a key of the wrong kind")]
    NotUnderstood,
    #[error("no such type of frame")]
    UnknownType,
    #[error("a value is missing, empty or too long")]
    Incomplete,
    #[error("the token was refused")]
    TokenRefused,
    #[error("the token does not allow this event")]
    NotAllowed,
    #[error("the token cannot be checked now, try again later")]
    CheckUnavailable,
    #[error("the token belongs to a different user")]
    OtherUser,
    #[error("too many events on this connection, the limit is {limit}")]
    TooManyEvents { limit: usize },
    #[error("too many connections of this user, the limit is {limit}")]
    TooManyConnections { limit: usize },
    #[error("bind first")]
    NotBound,
    #[error("only the first bind of a connection can resume a session")]
    AlreadyBound,
    #[error("nothing with this seq was sent")]
    BadAck,
    #[error("the last event cannot be unbound: close the connection instead")]
    LastEvent,
}

impl RequestError {
    fn code(self) -> &'static str {
        match self {
            Self::NotUnderstood => "not_understood",
            Self::UnknownType => "unknown_type",
            Self::Incomplete => "incomplete",
            Self::TokenRefused => "token_refused",
            Self::NotAllowed => "not_allowed",
            Self::CheckUnavailable => "check_unavailable",
            Self::OtherUser => "other_user",
            Self::TooManyEvents { .. } => "too_many_events",
            Self::TooManyConnections { .. } => "too_many_connections",
            Self::NotBound => "not_bound",
            Self::AlreadyBound => "already_bound",
            Self::BadAck => "bad_ack",
            Self::LastEvent => "last_event",
        }
    }

    /// What ends a connection that is not bound yet.
    pub(crate) fn close_reason(self) -> Option<CloseReason> {
        Some(match self {
            Self::NotUnderstood => CloseReason::NotUnderstood,
            Self::Incomplete => CloseReason::Incomplete,
            Self::TokenRefused => CloseReason::TokenRefused,
            Self::NotAllowed => CloseReason::NotAllowed,
            Self::CheckUnavailable => CloseReason::CheckUnavailable,
            Self::TooManyConnections { .. } => CloseReason::TooManyConnections,
            Self::TooManyEvents { .. } => CloseReason::TooManyEvents,
            Self::OtherUser => CloseReason::OtherUser,
            Self::UnknownType | Self::NotBound | Self::AlreadyBound | Self::BadAck | Self::LastEvent => return None,
        })
    }
}

impl From<&TokenError> for RequestError {
    fn from(error: &TokenError) -> Self {
        match error {
            TokenError::Refused => Self::TokenRefused,
            TokenError::NotAllowed => Self::NotAllowed,
            TokenError::Unavailable => Self::CheckUnavailable,
        }
    }
}

impl Request {
    /// Reads a frame. What it takes and what the published schema does are the same, but for lengths in bytes.
    pub(crate) fn read(json: &[u8]) -> Result<Self, RequestError> {
        let Ok(Value::Object(frame)) = serde_json::from_slice(json) else { return Err(RequestError::NotUnderstood) };
        let kind = frame.get("type").and_then(Value::as_str).ok_or(RequestError::NotUnderstood)?;
        match kind {
            "bind" => Ok(Self::Bind {
                token: token(&frame)?,
                event: event(&frame)?,
                resume: frame.get("resume").map(Resume::read).transpose()?,
            }),
            "unbind" => Ok(Self::Unbind { event: event(&frame)? }),
            "ack" => Ok(Self::Ack { seq: seq(&frame)? }),
            "refresh" => Ok(Self::Refresh { token: token(&frame)? }),
            "ping" => Ok(Self::Ping),
            _ => Err(RequestError::UnknownType),
        }
    }
}

impl Resume {
    fn read(resume: &Value) -> Result<Self, RequestError> {
        let Value::Object(resume) = resume else { return Err(RequestError::NotUnderstood) };
        let token = text(resume, "token")?;
        if token.is_empty() || token.len() > RESUME_TOKEN_BYTES_MAX {
            return Err(RequestError::Incomplete);
        }
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(RequestError::NotUnderstood);
        }
        Ok(Self { token: ResumeToken::read(token), seq: seq(resume)? })
    }
}

type Frame = serde_json::Map<String, Value>;

fn text<'a>(frame: &'a Frame, key: &str) -> Result<&'a str, RequestError> {
    frame.get(key).ok_or(RequestError::Incomplete)?.as_str().ok_or(RequestError::NotUnderstood)
}

fn token(frame: &Frame) -> Result<Token, RequestError> {
    let token = text(frame, "token")?;
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
        return Err(RequestError::Incomplete);
    }
    Ok(Token::new(token.to_owned()))
}

fn event(frame: &Frame) -> Result<Event, RequestError> {
    Event::new(text(frame, "event")?).map_err(|_| RequestError::Incomplete)
}

/// The number of a message. To a client whose numbers are doubles, `1`, `1.0` and `1e0` are the same.
fn seq(frame: &Frame) -> Result<u64, RequestError> {
    let seq = frame.get("seq").ok_or(RequestError::Incomplete)?;
    let seq = match (seq.as_u64(), seq.as_f64()) {
        (Some(seq), _) => seq,
        // Exact below the limit, and above it whatever is above it.
        (None, Some(seq)) if seq >= 0.0 && seq.fract() == 0.0 => seq as u64,
        _ => return Err(RequestError::NotUnderstood),
    };
    if seq > NUMBER_MAX { Err(RequestError::Incomplete) } else { Ok(seq) }
}

/// What the gateway says beside messages and gaps.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum ServerFrame<'a> {
    Welcome {
        bind_timeout_ms: u64,
        ping_interval_ms: u64,
    },
    Bound {
        event: &'a str,
        connection_id: String,
        epoch: String,
        resume: String,
        seq: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        recovered: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_in_ms: Option<u64>,
    },
    Unbound {
        event: &'a str,
    },
    Refreshed {
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_in_ms: Option<u64>,
    },
    Pong,
    Error {
        code: &'static str,
        message: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        event: Option<&'a str>,
    },
    Goaway {
        retry_after_ms: u64,
    },
}

impl<'a> ServerFrame<'a> {
    pub(crate) fn bound(
        event: &'a Event,
        epoch: ConnectionId,
        resume: ResumeToken,
        seq: u64,
        recovered: Option<bool>,
        expires_in_ms: Option<u64>,
    ) -> Self {
        Self::Bound {
            event: event.as_str(),
            connection_id: epoch.to_string(),
            epoch: epoch.to_string(),
            resume: resume.to_string(),
            seq,
            recovered,
            expires_in_ms,
        }
    }

    pub(crate) fn error(error: RequestError, event: Option<&'a Event>) -> Self {
        Self::Error { code: error.code(), message: error.to_string(), event: event.map(Event::as_str) }
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are always JSON")
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).map_or(NUMBER_MAX, |milliseconds| milliseconds.min(NUMBER_MAX))
}

#[cfg(test)]
mod tests {
    use jsonschema::Validator;
    use proptest::prelude::*;
    use proptest::sample::select;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use serde_json::json;

    use super::*;

    /// What the schema says of one side's frames.
    fn validator(side: &str) -> Validator {
        let schema = include_str!("../../proto/session/pushgate.v1.schema.json");
        let schema: Value = serde_json::from_str(schema).expect("JSON");
        let side = json!({ "$ref": format!("#/$defs/{side}"), "$defs": schema["$defs"] });
        jsonschema::validator_for(&side).expect("a schema")
    }

    /// Texts about the limits, in characters and in bytes.
    fn any_text() -> impl Strategy<Value = Value> {
        let lengths = [0, 1, 2, 32, 255, 256, 257, 512, 513, 1023, 1024, 1025, 8192, 8193, 16_383, 16_384, 16_385];
        let letter = select(vec!["a", "0", "~", "\u{7f}", " ", "\n", "\"", "\u{fc}", "\u{1f600}"]);
        prop_oneof![
            4 => select(vec!["ann-token", "mail", "0123456789abcdef0123456789abcdef"]).prop_map(str::to_owned),
            2 => (letter, select(lengths.to_vec())).prop_map(|(letter, length)| letter.repeat(length)),
        ]
        .prop_map(Value::from)
    }

    /// Numbers about the limits, whole and not.
    fn any_number() -> impl Strategy<Value = Value> {
        let max = NUMBER_MAX as f64;
        let doubles = [0.0, -0.0, 1.0, 1e2, 1.5, -1.0, 0.1, max, max + 1.0, 1e19, 1e300, -1e300, 5e-324];
        prop_oneof![
            select(vec![0, 1, 7, NUMBER_MAX - 1, NUMBER_MAX, NUMBER_MAX + 1, u64::MAX]).prop_map(Value::from),
            select(vec![-1, i64::MIN]).prop_map(Value::from),
            select(doubles.to_vec()).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
        ]
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            4 => any_text(),
            4 => any_number(),
            1 => Just(Value::Null),
            1 => any::<bool>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 8, 3, |inner| {
            let keys = select(vec!["token", "seq", "event", "more"]).prop_map(str::to_owned);
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map(keys, inner, 0..3).prop_map(|map| json!(map)),
            ]
        })
    }

    /// A value of the right kind in most cases, any in some, or none.
    fn mostly(right: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Option<Value>> {
        prop_oneof![8 => right.prop_map(Some), 1 => any_value().prop_map(Some), 1 => Just(None)]
    }

    fn object<const N: usize>(keys: [&'static str; N], values: [Option<Value>; N]) -> Value {
        keys.into_iter().zip(values).filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }

    fn any_frame() -> impl Strategy<Value = Value> {
        let kinds = ["bind", "bind", "bind", "unbind", "ack", "ack", "refresh", "ping", "push", "Ack", ""];
        let resume =
            (mostly(any_text()), mostly(any_number()), prop_oneof![3 => Just(None), 1 => any_value().prop_map(Some)])
                .prop_map(|(token, seq, more)| object(["token", "seq", "more"], [token, seq, more]));
        let resume = prop_oneof![3 => Just(None), 3 => resume.prop_map(Some), 1 => any_value().prop_map(Some)];
        let more = prop_oneof![3 => Just(None), 1 => any_value().prop_map(Some)];
        let kind = mostly(select(kinds.to_vec()).prop_map(Value::from));
        let frame = (kind, mostly(any_text()), mostly(any_text()), mostly(any_number()), resume, more).prop_map(
            |(kind, token, event, seq, resume, more)| {
                let keys = ["type", "token", "event", "seq", "resume", "more"];
                object(keys, [kind, token, event, seq, resume, more])
            },
        );
        prop_oneof![20 => frame, 1 => any_value()]
    }

    /// Whether a frame that fits the schema holds a text that is over its limit in bytes alone, which no schema can say.
    fn is_over_in_bytes(frame: &Value) -> bool {
        let is_over = |key: &str, limit| frame[key].as_str().is_some_and(|text| text.len() > limit);
        let (token, event) = (is_over("token", TOKEN_BYTES_MAX), is_over("event", Event::BYTES_MAX));
        match frame["type"].as_str() {
            Some("bind") => token || event,
            Some("unbind") => event,
            Some("refresh") => token,
            _ => false,
        }
    }

    #[track_caller]
    fn assert_agrees(text: &str, schema: &Validator) -> bool {
        let frame: Value = serde_json::from_str(text).expect("JSON");
        let is_valid = schema.is_valid(&frame);
        match (Request::read(text.as_bytes()), is_valid) {
            (Ok(Request::Ack { seq }), true) => assert_eq!(Some(seq as f64), frame["seq"].as_f64(), "{text}"),
            (Ok(Request::Bind { resume, .. }), true) => {
                assert_eq!(resume.map(|resume| resume.seq as f64), frame["resume"]["seq"].as_f64(), "{text}");
            }
            (Ok(_), true) => {}
            (Err(error), true) => {
                assert!(error == RequestError::Incomplete && is_over_in_bytes(&frame), "refused as {error:?}: {text}");
            }
            (Err(error), false) => {
                let whys = [RequestError::NotUnderstood, RequestError::UnknownType, RequestError::Incomplete];
                assert!(whys.contains(&error), "refused as {error:?}: {text}");
            }
            (Ok(request), false) => panic!("taken as {request:?}: {text}"),
        }
        is_valid
    }

    #[test]
    fn the_parser_takes_what_the_schema_does_and_nothing_else() {
        let schema = validator("client");
        let (mut valid, mut wrong) = (0, 0);
        let (mut runner, frames) = (TestRunner::default(), any_frame());
        for _ in 0..4_000 {
            let frame = frames.new_tree(&mut runner).expect("a frame").current();
            let count = if assert_agrees(&frame.to_string(), &schema) { &mut valid } else { &mut wrong };
            *count += 1;
        }
        assert!(valid > 400 && wrong > 400, "{valid} good ones and {wrong} wrong ones are too few to tell");
    }

    #[test]
    fn numbers_and_frames_are_the_same_however_they_are_written() {
        let schema = validator("client");
        for (number, is_valid) in [
            ("1", true),
            ("1.0", true),
            ("1e2", true),
            ("1E+2", true),
            ("100e-2", true),
            ("-0", true),
            ("-0.0", true),
            ("9007199254740991", true),
            ("9007199254740991.0", true),
            ("9007199254740992", false),
            ("9007199254740992.0", false),
            ("18446744073709551616", false),
            ("1.5", false),
            ("-1", false),
            ("-1.0", false),
            ("null", false),
            ("\"1\"", false),
            ("[1]", false),
        ] {
            for frame in [
                format!(r#"{{"type":"ack","seq":{number}}}"#),
                format!(r#"{{"type":"bind","token":"t","event":"e","resume":{{"token":"r","seq":{number}}}}}"#),
            ] {
                assert_eq!(assert_agrees(&frame, &schema), is_valid, "{frame}");
            }
        }
        for frame in [
            r#" { "\u0074ype" : "ping" } "#,
            r#"{"type":"ping","type":"ping"}"#,
            r#"{"type":"bind","token":"\ud83d\ude00","event":"\u00fc"}"#,
        ] {
            assert!(assert_agrees(frame, &schema), "{frame}");
        }
        for frame in [
            r#"{"type":"bind","token":"t","event":"e","resume":null}"#,
            r#"{"type":"bind","token":"t","event":"e","resume":["r",1]}"#,
            r#"{"type":"bind","token":"t","event":"e","resume":{"token":"a b","seq":1}}"#,
            r#"{"type":"bind","token":"t","event":"e","resume":{"token":"\u00fc","seq":1}}"#,
            r#"{"type":"unbind","event":null}"#,
            r#"["ping"]"#,
            r#""ping""#,
        ] {
            assert!(!assert_agrees(frame, &schema), "{frame}");
        }
        for text in ["", "{", r#"{"type":"ping"} {}"#, r#"{"type":"ping",}"#, r#"{"type":"bind","token":"\ud83d"}"#] {
            assert_eq!(Request::read(text.as_bytes()).err(), Some(RequestError::NotUnderstood), "{text}");
        }
    }

    #[test]
    fn a_frame_may_be_nested_as_deeply_as_the_page_says() {
        for (depth, is_read) in [(NESTED_MAX, true), (NESTED_MAX + 1, false)] {
            let lists = depth - 1;
            let frame = format!(r#"{{"type":"ping","more":{}{}}}"#, "[".repeat(lists), "]".repeat(lists));
            assert_eq!(Request::read(frame.as_bytes()).is_ok(), is_read, "{depth}");
        }
        let page = include_str!("../../proto/session/pushgate.v1.json.md");
        assert!(page.contains(&format!("{NESTED_MAX} deep")));
    }

    /// serde_json's own limit.
    const NESTED_MAX: usize = 127;

    #[test]
    fn every_error_is_one_of_the_schema_and_every_one_of_the_schema_is_an_error() {
        let mut codes = std::collections::BTreeSet::new();
        let schema = validator("error");
        for error in every_error() {
            let said = serde_json::to_value(ServerFrame::error(error, None)).expect("JSON");
            assert!(schema.is_valid(&said), "{said}");
            codes.insert(error.code());
        }
        let published: Value =
            serde_json::from_str(include_str!("../../proto/session/pushgate.v1.schema.json")).expect("JSON");
        let published = published["$defs"]["error_code"]["enum"].as_array().expect("a list");
        assert_eq!(codes, published.iter().filter_map(Value::as_str).collect());
    }

    /// Every error: one that is left out does not compile.
    fn every_error() -> Vec<RequestError> {
        macro_rules! every {
            ($($error:ident $({ $limit:ident })?),+) => {{
                let _is_listed = |error| match error { $(RequestError::$error { .. })|+ => () };
                vec![$(RequestError::$error $({ $limit: 1 })?),+]
            }};
        }
        every!(
            NotUnderstood,
            UnknownType,
            Incomplete,
            TokenRefused,
            NotAllowed,
            CheckUnavailable,
            OtherUser,
            TooManyEvents { limit },
            TooManyConnections { limit },
            NotBound,
            AlreadyBound,
            BadAck,
            LastEvent
        )
    }

    #[test]
    fn a_time_without_end_is_still_a_number_that_every_client_can_read() {
        assert_eq!(milliseconds(Duration::MAX), NUMBER_MAX);
        assert_eq!(milliseconds(Duration::from_secs(1)), 1000);
    }
}
