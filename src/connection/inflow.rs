//! What one client may send: its limits, and how much of its rates it has left.

use std::time::Instant;

use crate::allowance::BURST;
use crate::close::CloseReason;
use crate::config::Config;

use super::inbound::Begun;

/// The limits of what a client sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) message_bytes_max: usize,
    pub(super) frame_bytes_max: usize,
    pub(super) message_fragments_max: u32,
    pub(super) rates: Rates,
}

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            message_bytes_max: config.client_message_bytes_max,
            frame_bytes_max: config.client_frame_bytes_max,
            message_fragments_max: config.client_message_fragments_max,
            rates: Rates {
                frames_per_second_max: config.client_frames_per_second_max,
                pings_per_second_max: config.client_pings_per_second_max,
            },
        }
    }
}

/// What a client may send a second. [`BURST`] of it may come at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    pub(super) frames_per_second_max: u32,
    pub(super) pings_per_second_max: u32,
}

impl Rates {
    fn bursts(self) -> [f32; 2] {
        [self.frames_per_second_max, self.pings_per_second_max].map(|rate| rate as f32 * BURST.as_secs_f32())
    }
}

/// What a client may still send. Two [`crate::allowance::Allowance`]s with one time and without their rates, since every
/// idle connection has it.
#[derive(Debug)]
pub(super) struct Inflow {
    at: Instant,
    frames_left: f32,
    pings_left: f32,
}

impl Inflow {
    /// Starts with a full burst.
    pub(super) fn new(rates: Rates, now: Instant) -> Self {
        let [frames_left, pings_left] = rates.bursts();
        Self { at: now, frames_left, pings_left }
    }

    /// Uses up what began.
    ///
    /// # Errors
    /// Why the client must be closed, if it sends too fast or in too many pieces.
    pub(super) fn spend(&mut self, begun: Begun, limits: Limits, now: Instant) -> Result<(), CloseReason> {
        let rates = limits.rates;
        let seconds = now.saturating_duration_since(self.at).as_secs_f32();
        self.at = now;
        let [frames_max, pings_max] = rates.bursts();
        let earned = |rate: u32| seconds * rate as f32;
        self.frames_left =
            (self.frames_left + earned(rates.frames_per_second_max)).min(frames_max) - begun.frames as f32;
        self.pings_left = (self.pings_left + earned(rates.pings_per_second_max)).min(pings_max) - begun.pings as f32;
        if self.frames_left < 0.0 {
            return Err(CloseReason::TooManyFrames);
        }
        if self.pings_left < 0.0 {
            return Err(CloseReason::TooManyPings);
        }
        if begun.fragments_most > limits.message_fragments_max {
            return Err(CloseReason::TooManyFragments);
        }
        Ok(())
    }

    /// Allows as many frames more, because the gateway has sent something that the client must answer.
    pub(super) fn earn(&mut self, frames: u32) {
        // What is over the burst goes when the client spends next.
        self.frames_left += frames as f32;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits = Limits {
        message_bytes_max: 1,
        frame_bytes_max: 1,
        message_fragments_max: 3,
        rates: Rates { frames_per_second_max: 10, pings_per_second_max: 2 },
    };

    fn frames(frames: u32, pings: u32) -> Begun {
        Begun { frames, pings, fragments_most: 1 }
    }

    #[test]
    fn frames_and_pings_have_a_burst_and_a_rate_each() {
        let start = Instant::now();
        let mut inflow = Inflow::new(LIMITS.rates, start);
        assert_eq!(inflow.spend(frames(100, 20), LIMITS, start), Ok(()));
        for second in 1..100 {
            assert_eq!(inflow.spend(frames(10, 2), LIMITS, start + Duration::from_secs(second)), Ok(()), "{second}");
        }
        let end = start + Duration::from_secs(100);
        assert_eq!(inflow.spend(frames(3, 3), LIMITS, end), Err(CloseReason::TooManyPings));
        assert_eq!(
            Inflow::new(LIMITS.rates, start).spend(frames(101, 0), LIMITS, start),
            Err(CloseReason::TooManyFrames)
        );
    }

    #[test]
    fn an_answer_that_is_expected_costs_nothing_and_what_is_not_used_is_saved_up_to_the_burst() {
        let start = Instant::now();
        let mut inflow = Inflow::new(LIMITS.rates, start);
        for _ in 0..1000 {
            assert_eq!(inflow.spend(frames(1, 0), LIMITS, start), Ok(()));
            inflow.earn(1);
        }
        let later = start + Duration::from_secs(3600);
        assert_eq!(inflow.spend(frames(100, 0), LIMITS, later), Ok(()));
        assert_eq!(inflow.spend(frames(1, 0), LIMITS, later), Err(CloseReason::TooManyFrames));
    }
}
