//! One connection, driven by what its client sends, pushes, time and a client that stops reading: what is written is a
//! sound stream of frames with every message in order and once, and in the end the connection is gone.

#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use pushgate::inside::{Inside, Pipe, Speaks};
use pushgate::{Config, Push, UserId};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

const USER: &str = "ann";
const EVENTS: [&str; 3] = ["mail", "news", "call"];

/// As long as no step of a life.
const A_MOMENT: Duration = Duration::from_millis(1);

/// What becomes of every connection and session within this time of silence.
const THE_END: Duration = Duration::from_secs(60);

#[derive(Arbitrary, Debug)]
struct Life {
    is_session: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// The client sends anything.
    Bytes(Vec<u8>),
    /// The client sends a frame that is sound, with anything in it.
    Frame {
        head: u8,
        body: Vec<u8>,
    },
    Bind {
        event: u8,
    },
    Unbind {
        event: u8,
    },
    Ack {
        seq: u8,
    },
    Push {
        event: u8,
        length: u16,
    },
    /// Both ways of the push: kept for the one who comes back, or for now.
    PushForNow {
        event: u8,
    },
    Wait {
        milliseconds: u16,
    },
    /// The client reads so many bytes and then stops.
    Room {
        bytes: u16,
    },
    ReadsAll,
    Close,
    Reset,
    Drop,
}

thread_local! {
    static GATEWAY: (Runtime, Inside) = {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        let second = Duration::from_secs(1);
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            bind_timeout: 3 * second,
            ping_interval: 5 * second,
            pong_timeout: 3 * second,
            write_timeout: 3 * second,
            close_timeout: 2 * second,
            journal_age: second,
            outbox_messages_max: 8,
            message_bytes_max: 1 << 16,
            outbox_bytes_max: 1 << 17,
            client_message_bytes_max: 4096,
            client_frame_bytes_max: 2048,
            ..Config::default()
        };
        let inside = runtime.block_on(Inside::start(config)).expect("a gateway");
        (runtime, inside)
    };
}

fuzz_target!(|life: Life| GATEWAY.with(|(runtime, inside)| runtime.block_on(live(inside, life))));

async fn live(inside: &Inside, life: Life) {
    let speaks = if life.is_session { Speaks::Session } else { Speaks::Legacy };
    let pipe = inside.connect_pipe(speaks).expect("nobody else is connected");
    let mut written = Vec::new();
    let mut pushed = 0;
    for step in life.steps.into_iter().take(64) {
        take(inside, &pipe, speaks, step, &mut pushed).await;
        // The clock goes on when all tasks have done what they can.
        sleep(A_MOMENT).await;
        written.extend(pipe.take_written());
    }
    sleep(THE_END).await;
    written.extend(pipe.take_written());
    assert_eq!(inside.connections(), 0, "a connection outlives its deadlines");
    assert_eq!(inside.sessions_away(), 0, "a session outlives its age");
    assert_eq!(inside.bindings(), 0, "a binding outlives its connection");
    check(&written, speaks, pushed);
}

async fn take(inside: &Inside, pipe: &Pipe, speaks: Speaks, step: Step, pushed: &mut u64) {
    let event = |event: u8| EVENTS[usize::from(event) % EVENTS.len()];
    let say = |text: String| pipe.send(&frame(0x81, text.as_bytes()));
    match step {
        Step::Bytes(bytes) => pipe.send(&bytes),
        Step::Frame { head, body } => pipe.send(&frame(head, &body)),
        Step::Bind { event: e } if speaks == Speaks::Legacy => {
            say(format!(r#"{{"token":"{USER}","event":"{}"}}"#, event(e)));
        }
        Step::Bind { event: e } => say(format!(r#"{{"type":"bind","token":"{USER}","event":"{}"}}"#, event(e))),
        Step::Unbind { event: e } => say(format!(r#"{{"type":"unbind","event":"{}"}}"#, event(e))),
        Step::Ack { seq } => say(format!(r#"{{"type":"ack","seq":{seq}}}"#)),
        Step::Push { event: e, length } => push(inside, event(e), usize::from(length), None, pushed).await,
        Step::PushForNow { event: e } => push(inside, event(e), 0, Some(Duration::ZERO), pushed).await,
        Step::Wait { milliseconds } => sleep(Duration::from_millis(milliseconds.into())).await,
        Step::Room { bytes } => pipe.set_room(bytes.into()),
        Step::ReadsAll => pipe.set_room(usize::MAX),
        Step::Close => pipe.close(),
        Step::Reset => pipe.reset(),
        Step::Drop => {
            let user = UserId::new(USER).expect("not empty");
            inside.gateway().drop_user(&user, None).await;
        }
    }
}

/// Pushes a message that has its number in it.
async fn push(inside: &Inside, event: &str, length: usize, ttl: Option<Duration>, pushed: &mut u64) {
    *pushed += 1;
    let push = Push::new(USER, event, format!("{pushed:0>length$}")).expect("not empty");
    let push = if let Some(ttl) = ttl { push.with_ttl(ttl) } else { push };
    let outcome = inside.gateway().push(&push).await.expect("within its limits");
    assert!(outcome.matched <= 1, "{outcome:?}");
    assert_eq!(outcome.matched, outcome.accepted + outcome.drops.total(), "{outcome:?}");
}

/// A frame of a client's, whole and masked. RFC 6455 section 5.2.
fn frame(head: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut frame = match length {
        ..126 => vec![head, 0x80 | length as u8],
        _ => [&[head, 0x80 | 126][..], &length.to_be_bytes()].concat(),
    };
    frame.extend([0; 4]);
    frame.extend(&body[..length.into()]);
    frame
}

/// Checks what the client would have read. A frame that was cut off may be at its end, and nothing behind a close frame.
fn check(mut written: &[u8], speaks: Speaks, pushed: u64) {
    let (mut is_closed, mut last, mut seq) = (false, 0, 0);
    while let Some((head, body, rest)) = next(written) {
        assert!(!is_closed, "a frame behind the close frame");
        written = rest;
        match head {
            0x81 => {
                let text = std::str::from_utf8(body).expect("text is UTF-8");
                let message = match speaks {
                    Speaks::Legacy => Some(text.to_owned()),
                    Speaks::Session => message(text, &mut seq),
                };
                if let Some(message) = message {
                    let number: u64 = message.parse().expect("a message that was pushed");
                    assert!(number > last && number <= pushed, "{number} behind {last} of {pushed}");
                    last = number;
                }
            }
            0x88 => {
                is_closed = true;
                assert!(body.len() <= 125 && body.len() != 1, "{body:?}");
                std::str::from_utf8(body.get(2..).unwrap_or_default()).expect("a reason is UTF-8");
            }
            0x89 | 0x8a => assert!(body.len() <= 125),
            _ => panic!("a frame that begins with {head:#x}"),
        }
    }
    assert!(!is_closed || written.is_empty(), "bytes behind the close frame");
}

/// The message in a frame of the session protocol. Numbers go on one by one, and a gap tells which are left out.
fn message(text: &str, seq: &mut u64) -> Option<String> {
    let told: Value = serde_json::from_str(text).expect("JSON");
    let number = |name: &str| told[name].as_u64().expect("a number");
    match told["type"].as_str().expect("a type") {
        "push" => {
            *seq += 1;
            assert_eq!(number("seq"), *seq);
            Some(told["message"].as_str().expect("a text").to_owned())
        }
        "gap" => {
            assert_eq!(number("from"), *seq + 1);
            *seq = number("to");
            None
        }
        _ => None,
    }
}

/// Takes off a whole frame of a server's: its first byte and its body.
fn next(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[head, length], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match length {
        ..126 => (u64::from(length), rest),
        126 => rest.split_first_chunk().map(|(length, rest)| (u16::from_be_bytes(*length).into(), rest))?,
        127 => rest.split_first_chunk().map(|(length, rest)| (u64::from_be_bytes(*length), rest))?,
        _ => panic!("a server does not mask"),
    };
    let (body, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some((head, body, rest))
}
