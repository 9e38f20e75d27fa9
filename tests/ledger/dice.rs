//! Random numbers that depend only on the seed and the owner, not on the order in which tasks run.

/// xorshift64*, started from a well-mixed seed.
#[derive(Debug)]
pub(crate) struct Dice(u64);

/// The owner of the dice. Different owners get different numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner {
    Session(usize),
    Legacy(usize),
    Pusher(usize),
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "there is no such link"))]
    Link,
}

impl Dice {
    pub(crate) fn of(seed: u64, owner: Owner) -> Self {
        let (role, number) = match owner {
            Owner::Session(number) => (1, number),
            Owner::Legacy(number) => (2, number),
            Owner::Pusher(number) => (3, number),
            Owner::Link => (4, 0),
        };
        Self(mix(mix(seed ^ role << 56) ^ number as u64) | 1)
    }

    /// A random number below `sides`.
    pub(crate) fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % sides
    }

    pub(crate) fn one_in(&mut self, sides: u64) -> bool {
        self.below(sides) == 0
    }

    /// One of these, at random.
    pub(crate) fn pick<T: Copy>(&mut self, these: &[T]) -> T {
        these[self.below(these.len() as u64) as usize]
    }
}

/// The mixing function of splitmix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
