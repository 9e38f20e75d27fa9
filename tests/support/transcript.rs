//! Parses the transcripts in the page of the session protocol. The page explains each kind of line.

use serde_json::{Value, json};

/// The published page.
pub const PAGE: &str = include_str!("../../proto/session/pushgate.v1.json.md");

/// One transcript: a test case.
#[derive(Debug)]
pub struct Transcript {
    pub heading: &'static str,
    pub lines: Vec<Line>,
}

#[derive(Debug)]
pub struct Line {
    pub text: &'static str,
    /// Identifies the connection, because several can be open at the same time.
    pub connection: u8,
    pub step: Step,
}

/// One step of a transcript.
#[derive(Debug)]
pub enum Step {
    Connect,
    Client(Value),
    /// A message from the client that is not a valid frame of the protocol.
    Wrong(&'static str),
    Server(Value),
    Close(Side, u16, &'static str),
    Reset,
    Push(Value),
    /// A gateway starts, with these settings.
    Start(Value),
    Stop,
    Forget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// All transcripts of the page.
pub fn transcripts() -> Vec<Transcript> {
    let mut transcripts = Vec::new();
    let (mut heading, mut open) = ("", None::<Vec<Line>>);
    for text in PAGE.lines() {
        match &mut open {
            None if text == "```transcript" => open = Some(Vec::new()),
            None => heading = text.strip_prefix("### ").unwrap_or(heading),
            Some(_) if text == "```" => transcripts.push(Transcript { heading, lines: open.take().unwrap() }),
            Some(lines) => lines.extend(read(text)),
        }
    }
    assert!(open.is_none(), "the last transcript does not end");
    transcripts
}

/// Parses a line. `None` for a comment, which is for people.
fn read(text: &'static str) -> Option<Line> {
    if text.starts_with('#') {
        return None;
    }
    let is_mark = |c| matches!(c, ':' | '!');
    let (speaker, said) = text.split_at(text.find(is_mark).unwrap_or_else(|| panic!("nobody speaks: {text}")));
    let (speaker, number) = speaker.split_at(1);
    let step = match (speaker, number, said.split_at(2)) {
        ("C", _, ("! ", wrong)) => Step::Wrong(wrong),
        ("C", _, (": ", "connect")) => Step::Connect,
        ("C", _, (": ", "reset")) => Step::Reset,
        ("C", _, (": ", said)) => read_close(Side::Client, said).unwrap_or_else(|| Step::Client(read_json(said))),
        ("S", _, (": ", said)) => read_close(Side::Server, said).unwrap_or_else(|| Step::Server(read_json(said))),
        ("P", "", (": ", said)) => Step::Push(read_json(said)),
        ("G", "", (": ", "start")) => Step::Start(json!({})),
        ("G", "", (": ", "stop")) => Step::Stop,
        ("G", "", (": ", "forget")) => Step::Forget,
        ("G", "", (": ", said)) if said.starts_with("start ") => Step::Start(read_json(&said["start ".len()..])),
        _ => panic!("no such line: {text}"),
    };
    Some(Line { text, connection: if number.is_empty() { 1 } else { number.parse().unwrap() }, step })
}

fn read_json(said: &str) -> Value {
    serde_json::from_str(said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn read_close(side: Side, said: &'static str) -> Option<Step> {
    let (code, text) = said.strip_prefix("close ")?.split_once(' ').unwrap();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap();
    assert!(text.len() <= 123, "RFC 6455 section 5.5: a text over 123 bytes does not fit in a close frame");
    Some(Step::Close(side, code.parse().unwrap(), text))
}
