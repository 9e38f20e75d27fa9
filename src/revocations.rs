//! Which tokens are not good any more although they have not expired, and what tells a token from others. In memory.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};

use crate::message::UserId;

/// Stands for an id in as many bytes for each, however long it is: half of its SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IdHash([u8; 16]);

impl IdHash {
    fn of(text: &str) -> Self {
        let mut hash = [0; 16];
        hash.copy_from_slice(&digest(&SHA256, text.as_bytes()).as_ref()[..16]);
        Self(hash)
    }
}

/// What tells a token from others of its user, as far as the token check knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    token_id: Option<IdHash>,
    issued_at: Option<SystemTime>,
}

impl Stamp {
    pub(crate) fn new(token_id: Option<&str>, issued_at: Option<SystemTime>) -> Self {
        Self { token_id: token_id.map(IdHash::of), issued_at }
    }

    /// Whether nothing is known of the token.
    pub(crate) fn is_blank(&self) -> bool {
        *self == Self::default()
    }
}

/// The tokens by which one receiver is bound.
#[derive(Debug)]
pub(crate) struct Stamps(Vec<Stamp>);

impl Stamps {
    /// `None` if nothing is known of any of them.
    pub(crate) fn of(stamps: impl Iterator<Item = Stamp> + Clone) -> Option<Self> {
        if stamps.clone().all(|stamp| stamp.is_blank()) {
            return None;
        }
        let mut stamps: Vec<_> = stamps.collect();
        stamps.dedup();
        Some(Self(stamps))
    }

    /// Whether a revocation is about one of them.
    pub(crate) fn has_one_of(&self, revoked: &Revoked) -> bool {
        self.0.iter().any(|stamp| revoked.covers(stamp))
    }
}

/// Which tokens are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Revoked {
    /// The token with this id.
    Token(IdHash),
    /// All tokens of a user that were issued before this time, and those that do not say when they were.
    User { user_id: UserId, issued_before: SystemTime },
}

impl Revoked {
    pub(crate) fn token(token_id: &str) -> Self {
        Self::Token(IdHash::of(token_id))
    }

    /// Whether it is about this token of one of its users.
    pub(crate) fn covers(&self, stamp: &Stamp) -> bool {
        match self {
            Self::Token(token_id) => stamp.token_id == Some(*token_id),
            Self::User { issued_before, .. } => is_before(stamp, *issued_before),
        }
    }
}

fn is_before(stamp: &Stamp, issued_before: SystemTime) -> bool {
    stamp.issued_at.is_none_or(|issued_at| issued_at < issued_before)
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RevokedBy {
    Token,
    User,
}

/// There is no room for one more revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {limit} revocations, which is as many as revocations_max allows")]
pub(crate) struct Full {
    pub(crate) limit: usize,
}

/// All revocations in force. Each takes about a hundred bytes, whatever it is about.
#[derive(Debug)]
pub(crate) struct Revocations {
    limit: usize,
    /// So that a bind does nothing more while there are none.
    count: AtomicUsize,
    /// A std mutex: every operation is a few map steps. Lock order: no other is taken under it.
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// With the time until which each is kept.
    tokens: HashMap<IdHash, SystemTime>,
    users: HashMap<IdHash, OfUser>,
}

#[derive(Clone, Copy, Debug)]
struct OfUser {
    issued_before: SystemTime,
    until: SystemTime,
}

impl Held {
    fn len(&self) -> usize {
        self.tokens.len() + self.users.len()
    }

    fn forget_past(&mut self, now: SystemTime) {
        self.tokens.retain(|_, until| *until > now);
        self.users.retain(|_, of_user| of_user.until > now);
    }
}

impl Revocations {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, count: AtomicUsize::new(0), held: Mutex::default() }
    }

    /// Refuses these tokens until that time. One that is there already is extended, and never narrowed. Returns until
    /// when it is kept.
    ///
    /// # Errors
    /// Refuses one too many. Nothing is forgotten before its time to make room.
    pub(crate) fn add(&self, revoked: &Revoked, until: SystemTime, now: SystemTime) -> Result<SystemTime, Full> {
        let mut held = self.held();
        if held.len() >= self.limit {
            held.forget_past(now);
        }
        let is_full = held.len() >= self.limit;
        let full = Full { limit: self.limit };
        let until = match revoked {
            Revoked::Token(token_id) => match held.tokens.entry(*token_id) {
                Entry::Occupied(mut kept) => {
                    let until = until.max(*kept.get());
                    kept.insert(until);
                    until
                }
                Entry::Vacant(_) if is_full => return Err(full),
                Entry::Vacant(place) => *place.insert(until),
            },
            Revoked::User { user_id, issued_before } => match held.users.entry(IdHash::of(user_id.as_str())) {
                Entry::Occupied(mut kept) => {
                    let kept = kept.get_mut();
                    // What one has narrowed by its time, the other has not.
                    kept.issued_before =
                        if kept.until > now { kept.issued_before.max(*issued_before) } else { *issued_before };
                    kept.until = kept.until.max(until);
                    kept.until
                }
                Entry::Vacant(_) if is_full => return Err(full),
                Entry::Vacant(place) => place.insert(OfUser { issued_before: *issued_before, until }).until,
            },
        };
        self.count.store(held.len(), Ordering::SeqCst);
        Ok(until)
    }

    /// Why a user's token is refused, if it is.
    pub(crate) fn find(&self, user_id: &UserId, stamp: &Stamp, now: SystemTime) -> Option<RevokedBy> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let held = self.held();
        let token = stamp.token_id.and_then(|token_id| held.tokens.get(&token_id));
        if token.is_some_and(|until| *until > now) {
            return Some(RevokedBy::Token);
        }
        let of_user = held.users.get(&IdHash::of(user_id.as_str()));
        let is_refused = |of_user: &OfUser| of_user.until > now && is_before(stamp, of_user.issued_before);
        of_user.is_some_and(is_refused).then_some(RevokedBy::User)
    }

    /// How many there are. Forgets those that are past.
    pub(crate) fn in_force(&self, now: SystemTime) -> usize {
        let mut held = self.held();
        held.forget_past(now);
        self.count.store(held.len(), Ordering::SeqCst);
        held.len()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // A panic in a few map steps can only be running out of memory; what is held is still good.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).expect("not empty")
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn of_user(name: &str, issued_before: u64) -> Revoked {
        Revoked::User { user_id: user(name), issued_before: at(issued_before) }
    }

    #[test]
    fn a_revocation_holds_for_its_tokens_until_its_time_and_for_no_others() {
        let revocations = Revocations::new(10);
        revocations.add(&Revoked::token("t1"), at(100), at(0)).expect("room");
        revocations.add(&of_user("ann", 50), at(200), at(0)).expect("room");
        let find = |name: &str, token_id: Option<&str>, issued_at: Option<u64>, now: u64| {
            revocations.find(&user(name), &Stamp::new(token_id, issued_at.map(at)), at(now))
        };
        assert_eq!(find("bob", Some("t1"), Some(60), 99), Some(RevokedBy::Token));
        assert_eq!(find("bob", Some("t1"), Some(60), 100), None, "it has expired by now");
        assert_eq!(find("bob", Some("t2"), None, 0), None);
        assert_eq!(find("ann", Some("t2"), Some(49), 199), Some(RevokedBy::User));
        assert_eq!(find("ann", None, None, 199), Some(RevokedBy::User), "it may be older");
        assert_eq!(find("ann", None, Some(50), 199), None, "a fresh login");
        assert_eq!(find("ann", None, None, 200), None);
    }

    #[test]
    fn when_there_is_no_room_one_more_is_refused_and_none_is_forgotten_before_its_time() {
        let revocations = Revocations::new(2);
        revocations.add(&Revoked::token("t1"), at(100), at(0)).expect("room");
        revocations.add(&of_user("ann", 10), at(200), at(0)).expect("room");
        assert_eq!(revocations.add(&Revoked::token("t2"), at(100), at(99)), Err(Full { limit: 2 }));
        assert_eq!(revocations.add(&of_user("bob", 10), at(100), at(99)), Err(Full { limit: 2 }));
        assert_eq!(revocations.add(&Revoked::token("t1"), at(150), at(99)), Ok(at(150)), "it has its place");
        assert_eq!(revocations.add(&of_user("ann", 5), at(150), at(99)), Ok(at(200)), "it is not shortened");
        assert!(revocations.find(&user("ann"), &Stamp::new(None, Some(at(9))), at(99)).is_some(), "nor narrowed");
        assert_eq!(revocations.in_force(at(150)), 1);
        assert_eq!(revocations.add(&Revoked::token("t2"), at(300), at(150)), Ok(at(300)));
    }
}
