use jsonschema::Validator;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::json;

use super::*;

/// What the schema says of one side's frames.
fn validator(side: &str) -> Validator {
    let schema = include_str!("../../../proto/session/pushgate.v1.schema.json");
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
    let page = include_str!("../../../proto/session/pushgate.v1.json.md");
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
        serde_json::from_str(include_str!("../../../proto/session/pushgate.v1.schema.json")).expect("JSON");
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
