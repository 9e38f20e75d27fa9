//! Who keeps a message for a client that is away. When only sessions that were away have it and the last of them ends, it is
//! passed on to whoever of the user's connects next.

/// The sessions that keep a message, and what becomes of it when the last of them ends.
#[derive(Debug)]
pub(super) struct Holders {
    sessions: u32,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The push is still being offered. So many sessions have kept it and ended meanwhile with nobody else keeping it;
    /// whether it is passed on is the push's to say. `has_arrived` says that a client that came back was sent it.
    Offered { left_to_push: u32, has_arrived: bool },
    /// Only sessions have it, so the last one to end passes it on.
    LeftBehind,
    /// It is never passed on: a client had it or has it coming, or it was passed on already.
    Settled,
}

/// Who answers for a message that a session has kept to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetGo {
    /// Nobody: this session's copy is lost.
    Lost,
    /// The session, which must pass it on.
    PassOn,
    /// The push, which is still being offered.
    LeftToPush,
}

/// What a push must do once it was offered to all receivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Whether to pass the message on, since all sessions that kept it have ended meanwhile.
    pub(crate) passes_on: bool,
    /// How many copies were lost with sessions that have ended meanwhile, besides the one that is passed on.
    pub(crate) lost: u32,
}

impl Holders {
    pub(super) fn new(may_be_passed_on: bool) -> Self {
        let phase =
            if may_be_passed_on { Phase::Offered { left_to_push: 0, has_arrived: false } } else { Phase::Settled };
        Self { sessions: 0, phase }
    }

    pub(super) fn hold(&mut self) {
        self.sessions += 1;
    }

    /// A session stops keeping it otherwise than by its end.
    pub(super) fn release(&mut self) {
        self.sessions -= 1;
    }

    /// A session sent it to its client, who has it from here on.
    pub(super) fn sent(&mut self) {
        self.release();
        match &mut self.phase {
            Phase::Offered { has_arrived, .. } => *has_arrived = true,
            phase => *phase = Phase::Settled,
        }
    }

    /// A session that kept it has ended.
    pub(super) fn let_go(&mut self) -> LetGo {
        self.release();
        match &mut self.phase {
            _ if self.sessions > 0 => LetGo::Lost,
            Phase::Offered { left_to_push, .. } => {
                *left_to_push += 1;
                LetGo::LeftToPush
            }
            Phase::LeftBehind => {
                self.phase = Phase::Settled;
                LetGo::PassOn
            }
            Phase::Settled => LetGo::Lost,
        }
    }

    /// The push was offered to all receivers. `is_only_held` says that none of them has a connection.
    pub(super) fn was_offered(&mut self, is_only_held: bool) -> Ended {
        let Phase::Offered { left_to_push, has_arrived } = self.phase else { return Ended::default() };
        let is_left_behind = is_only_held && !has_arrived;
        let passes_on = is_left_behind && self.sessions == 0 && left_to_push > 0;
        self.phase = if is_left_behind && self.sessions > 0 { Phase::LeftBehind } else { Phase::Settled };
        Ended { passes_on, lost: left_to_push - u32::from(passes_on) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a push that so many sessions without a connection keep.
    fn held_by(sessions: u32) -> Holders {
        let mut holders = Holders::new(true);
        (0..sessions).for_each(|_| holders.hold());
        holders
    }

    #[test]
    fn the_last_session_to_end_passes_on_what_no_client_had() {
        let mut holders = held_by(2);
        assert_eq!(holders.was_offered(true), Ended::default());
        assert_eq!([holders.let_go(), holders.let_go()], [LetGo::Lost, LetGo::PassOn]);
    }

    #[test]
    fn the_push_passes_on_one_copy_and_counts_the_others_when_all_sessions_ended_while_it_was_offered() {
        let mut holders = held_by(1);
        assert_eq!(holders.let_go(), LetGo::LeftToPush);
        holders.hold();
        assert_eq!(holders.let_go(), LetGo::LeftToPush);
        assert_eq!(holders.was_offered(true), Ended { passes_on: true, lost: 1 });
    }

    #[test]
    fn what_was_left_to_the_push_is_lost_when_a_connection_took_the_message() {
        let mut holders = held_by(1);
        assert_eq!(holders.let_go(), LetGo::LeftToPush);
        assert_eq!(holders.was_offered(false), Ended { passes_on: false, lost: 1 });
    }

    #[test]
    fn what_a_client_was_sent_is_not_passed_on_whenever_it_was() {
        let mut holders = held_by(2);
        holders.sent();
        assert_eq!(holders.let_go(), LetGo::LeftToPush);
        assert_eq!(holders.was_offered(true), Ended { passes_on: false, lost: 1 });

        let mut holders = held_by(2);
        assert_eq!(holders.was_offered(true), Ended::default());
        holders.sent();
        assert_eq!(holders.let_go(), LetGo::Lost);
    }

    #[test]
    fn a_copy_given_up_for_another_reason_is_not_passed_on() {
        let mut holders = held_by(1);
        holders.release();
        assert_eq!(holders.was_offered(true), Ended::default());
    }
}
