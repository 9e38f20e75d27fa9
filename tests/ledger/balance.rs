//! The final check: the answers to the callers, the messages that the clients received, and the gateway's metrics must
//! agree.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use crate::answers::{Lane, Record, State};
use crate::assert_distinct;
use crate::body::Body;
use crate::book::{Book, Ending, Name};
use crate::roamer::Visits;

/// The gateway's counters after all activity has ended.
#[derive(Debug)]
pub(crate) struct Counters(BTreeMap<String, u64>);

impl Counters {
    pub(crate) fn read(metrics: &str) -> Self {
        let samples = metrics.lines().filter(|line| !line.starts_with('#'));
        let whole = samples.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.strip_prefix("pushgate_")?.to_owned(), value.parse().ok()?))
        });
        Self(whole.collect())
    }

    /// The sum of a counter over all its labels.
    pub(crate) fn sum(&self, name: &str) -> u64 {
        self.by_label(name).map(|(_, value)| value).sum()
    }

    pub(crate) fn by_label(&self, name: &str) -> impl Iterator<Item = (&str, u64)> {
        let of_name = self.0.iter().filter_map(move |(sample, value)| {
            let rest = sample.strip_prefix(name)?.strip_prefix("_total")?;
            (rest.is_empty() || rest.starts_with('{')).then_some((rest, *value))
        });
        of_name.filter(|(_, value)| *value > 0)
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages = |name: &str| self.sum(&format!("messages_{name}"));
        write!(
            f,
            "  counted: {} accepted and {} held are {} written, {} undelivered, {} expired, {} displaced, {} forgotten; {} acked",
            self.sum("push_accepted"),
            messages("held"),
            messages("written"),
            messages("undelivered"),
            messages("expired"),
            messages("displaced"),
            messages("forgotten"),
            messages("acked"),
        )?;
        for name in ["push_dropped", "messages_undelivered", "closes", "resumes"] {
            write!(f, "\n    {name}:")?;
            for (label, value) in self.by_label(name) {
                write!(f, " {} {value}", label.trim_matches(['{', '}']))?;
            }
        }
        Ok(())
    }
}

/// All the data of one run.
pub(crate) struct Ledger {
    /// Indexed by the number of the push.
    pub(crate) records: Vec<Record>,
    pub(crate) books: Vec<Book>,
    pub(crate) visits: Vec<Visits>,
    pub(crate) counters: Counters,
}

/// The totals of the answers to the callers.
#[derive(Debug, Default)]
struct Told {
    refused: u64,
    unanswered: u64,
    unmatched: u64,
    dropped: BTreeMap<i32, u64>,
    held_for_user: u64,
    held: u64,
    accepted: u64,
    written: u64,
    cannot_ack: u64,
    acked: u64,
    lost: BTreeMap<i32, u64>,
}

impl Told {
    fn taken(&self) -> u64 {
        let Self { held_for_user, held, accepted, written, cannot_ack, acked, lost, .. } = self;
        held_for_user + held + accepted + written + cannot_ack + acked + lost.values().sum::<u64>()
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            refused,
            unanswered,
            unmatched,
            dropped,
            held_for_user,
            held,
            accepted,
            written,
            cannot_ack,
            acked,
            lost,
        } = self;
        write!(
            f,
            "  told: {refused} refused, {unanswered} not answered, {unmatched} for nobody, {held_for_user} held for a user; on connections: {held} held, \
             {accepted} accepted, {written} written, {cannot_ack} written to legacy clients, {acked} acked, dropped \
             {dropped:?}, lost {lost:?}"
        )
    }
}

/// The totals of what the clients received.
#[derive(Debug, Default)]
struct Seen {
    epochs: usize,
    complete: usize,
    received: u64,
    gaps: u64,
    /// The gaps of complete sessions: messages reported as dropped or lost, and messages lost after the answer.
    told_lost: u64,
    lost_later: u64,
    legacy: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epochs, complete, received, gaps, told_lost, lost_later, legacy } = self;
        write!(
            f,
            "  seen: {epochs} sessions got {received} messages and {gaps} numbers that are lost; legacy clients got {legacy}; of \
             the {complete} that came home {told_lost} were told as lost and {lost_later} were lost after the answer"
        )
    }
}

impl Ledger {
    /// Panics unless every push is accounted for. Returns a summary of a few lines.
    pub(crate) fn balance(self) -> String {
        let told = self.answers();
        let c = |name: &str| self.counters.sum(name);
        let dropped: u64 = told.dropped.values().sum();
        let seen = self.sessions();
        let text = [told.to_string(), seen.to_string(), self.counters.to_string()].join("\n");
        // A push without an answer may have been made, and then it was counted.
        let agree = |told_as: u64, counted: u64| told_as == counted || (told.unanswered > 0 && told_as < counted);
        assert!(agree(told.taken(), c("push_accepted") + c("messages_held")), "told and counted\n{text}");
        assert!(agree(dropped, c("push_dropped")), "told and counted as dropped\n{text}");
        assert_eq!(c("push_matched"), c("push_accepted") + c("push_dropped"), "{text}");
        let lost = ["undelivered", "expired", "displaced", "forgotten"].map(|what| c(&format!("messages_{what}")));
        assert_eq!(
            c("push_accepted") + c("messages_held"),
            c("messages_written") + lost.iter().sum::<u64>(),
            "the metrics balance\n{text}"
        );
        let received = seen.received + seen.legacy;
        assert!(received <= c("messages_written"), "{received} received\n{text}");
        let lost_later = lost.iter().sum::<u64>() + c("messages_written") - received;
        assert!(seen.lost_later <= lost_later, "at most {lost_later} were lost after the answer\n{text}");
        assert!(told.acked <= c("messages_acked"), "{text}");
        let said: u64 = self.books.iter().map(|book| book.acked).sum();
        assert!(c("messages_acked") <= said, "clients said it of {said}\n{text}");
        text
    }

    /// Counts the states that were reported to the callers: one for each push and connection.
    fn answers(&self) -> Told {
        let mut told = Told::default();
        for record in &self.records {
            record.check_end();
            told.refused += u64::from(record.refused.is_some());
            told.unanswered += u64::from(record.is_unanswered);
            told.held_for_user += u64::from(record.is_held_for_user);
            told.unmatched += u64::from(record.is_unmatched());
            for (_, state) in &record.connections {
                *match *state {
                    State::Dropped(reason) => told.dropped.entry(reason.into()).or_default(),
                    State::Lost(reason) => told.lost.entry(reason.into()).or_default(),
                    State::Held => &mut told.held,
                    State::Accepted => &mut told.accepted,
                    State::Written { cannot_ack: false } => &mut told.written,
                    State::Written { cannot_ack: true } => &mut told.cannot_ack,
                    State::Acked => &mut told.acked,
                } += 1;
            }
        }
        assert_distinct(self.records.iter().filter_map(|record| record.message_id), "message id");
        told
    }

    fn record(&self, body: Body) -> &Record {
        let record = &self.records[body.number as usize];
        assert_eq!(record.user, body.user);
        assert!(record.refused.is_none(), "{body:?} was received, and its caller told that it was refused");
        record
    }

    fn sessions(&self) -> Seen {
        assert_distinct(self.books.iter().map(|book| book.epoch), "epoch");
        // The states reported for each session, by the number of the push. The entries left at the end belong to legacy
        // connections.
        let mut told: HashMap<Name, Vec<(u32, State)>> = HashMap::new();
        for (number, record) in (0..).zip(&self.records) {
            for (name, state) in &record.connections {
                told.entry(*name).or_default().push((number, *state));
            }
        }
        let mut seen = Seen { epochs: self.books.len(), ..Seen::default() };
        // Tracks messages that any client of the user may get: those received by a session that was not reported, and
        // lost numbers that can only belong to such messages.
        let mut held_received: HashSet<u32> = HashSet::new();
        let mut held_lost: HashMap<usize, u64> = HashMap::new();
        for book in &self.books {
            let told = told.remove(&book.epoch).unwrap_or_default();
            let lost = self.session(book, &told, &mut held_received, &mut seen);
            if book.ending == Ending::Complete {
                *held_lost.entry(book.user).or_default() += lost;
            }
        }
        for visits in &self.visits {
            self.legacy(visits, &told, &mut held_received, &mut seen);
        }
        for (user, lost) in held_lost {
            let held = (0..).zip(&self.records).filter(|(_, record)| record.user == user && record.is_anyones);
            let unanswered =
                self.records.iter().filter(|record| record.user == user && record.is_unanswered).count() as u64;
            let sessions = self.books.iter().filter(|book| book.user == user).count() as u64;
            let missing =
                unanswered * sessions + held.filter(|(number, _)| !held_received.contains(number)).count() as u64;
            assert!(lost <= missing, "user {user}: {lost} numbers are nobody's, {missing} messages were held and lost");
        }
        seen
    }

    /// Checks one session. Returns how many of its numbers belong to no message reported for it. These can only be lost
    /// messages that any client of the user could get.
    fn session(&self, book: &Book, told: &[(u32, State)], held_received: &mut HashSet<u32>, seen: &mut Seen) -> u64 {
        book.check_late();
        self.order(book.received().map(|(_, _, body)| body));
        let mut received: HashMap<u32, u64> = HashMap::new();
        let mut held = 0;
        for (seq, id, body) in book.received() {
            let record = self.record(body);
            assert!(record.is_unanswered || record.message_id == Some(id), "{body:?}");
            assert!(received.insert(body.number, seq).is_none(), "{body:?} has two numbers in one session");
            let is_told = told.binary_search_by_key(&body.number, |(number, _)| *number).is_ok();
            if !is_told && record.is_unanswered {
                held += 1;
            } else if !is_told {
                assert!(record.is_anyones, "{body:?} came to a session that its caller was not told of");
                held += 1;
                assert!(held_received.insert(body.number), "{body:?} was held once and delivered twice");
            }
        }
        let late: HashSet<u32> = book.late.iter().map(|(_, _, body)| body.number).collect();
        let (mut missing, mut told_lost) = (0, 0);
        for (number, state) in told {
            let seq = received.get(number);
            let came = seq.is_some() || late.contains(number);
            match state {
                State::Dropped(reason) => {
                    assert!(!came, "push {number} was received, and told as dropped: {reason:?}");
                    told_lost += 1;
                }
                State::Lost(reason) => {
                    assert!(!came, "push {number}, {seq:?}, was received, and told as lost: {reason:?}");
                    told_lost += 1;
                }
                State::Acked => {
                    let seq =
                        *seq.unwrap_or_else(|| panic!("push {number} was told as acknowledged, and not received"));
                    assert!(seq <= book.acked, "push {number} was told as acknowledged, and was not");
                }
                State::Written { cannot_ack } => assert!(!cannot_ack, "push {number}: a session can acknowledge"),
                State::Held | State::Accepted => {}
            }
            missing += u64::from(seq.is_none());
        }
        seen.received += received.len() as u64;
        seen.gaps += book.gaps() as u64;
        if book.ending == Ending::Lost {
            return 0;
        }
        seen.complete += 1;
        seen.told_lost += told_lost;
        seen.lost_later += missing.saturating_sub(told_lost);
        let gaps = book.gaps() as u64;
        assert!(missing <= gaps, "{missing} messages did not come, and only {gaps} numbers are told as lost");
        assert_eq!(book.last(), told.len() as u64 + held + (gaps - missing), "every number is a message");
        gaps - missing
    }

    /// Checks that messages from the stream arrived in order within each priority.
    fn order(&self, received: impl Iterator<Item = Body>) {
        let mut last: HashMap<i32, u32> = HashMap::new();
        for body in received {
            let record = self.record(body);
            if record.lane == Lane::Call || record.is_anyones {
                continue;
            }
            if let Some(before) = last.insert(record.priority, body.number) {
                assert!(before < body.number, "{before} came before {body:?}, and was pushed after it");
            }
        }
    }

    fn legacy(
        &self,
        visits: &Visits,
        told: &HashMap<Name, Vec<(u32, State)>>,
        held_received: &mut HashSet<u32>,
        seen: &mut Seen,
    ) {
        let bodies = || visits.connections.iter().flatten().copied();
        assert_distinct(bodies().map(|body| body.number), "message of a legacy client");
        for connection in &visits.connections {
            self.order(connection.iter().copied());
            // A legacy client does not know the id of its connection, but one reported connection must match all its
            // messages.
            let mut may_be: Option<HashSet<Name>> = None;
            for body in connection {
                let record = self.record(*body);
                assert_eq!(body.user, visits.user);
                seen.legacy += 1;
                if record.is_unanswered {
                    continue;
                }
                if record.is_anyones {
                    assert!(held_received.insert(body.number), "{body:?} was held once and delivered twice");
                    continue;
                }
                let took = record.connections.iter().filter(|(name, state)| {
                    let is_possible = matches!(state, State::Accepted | State::Written { cannot_ack: true });
                    is_possible && told.contains_key(name)
                });
                let took: HashSet<Name> = took.map(|(name, _)| *name).collect();
                may_be = Some(match may_be {
                    None => took,
                    Some(before) => before.intersection(&took).copied().collect(),
                });
                assert!(may_be.as_ref().is_some_and(|names| !names.is_empty()), "{body:?}: {record:?}");
            }
        }
    }
}
