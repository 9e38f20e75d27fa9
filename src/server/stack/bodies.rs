//! The bytes of request bodies in hand: bounded over all, and for each caller to half of that, so that no one caller keeps
//! out the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::doors::Refusal;

/// All bodies in hand.
pub(super) struct Bodies {
    bytes_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    bytes: usize,
    by_payer: HashMap<Payer, usize>,
}

/// To whom a body is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Payer {
    /// A caller with a key, by the name of its scope.
    Key(String),
    /// One without.
    Address(IpAddr),
}

/// What one body takes. Dropped, it is given back.
pub(super) struct Share {
    bodies: Arc<Bodies>,
    payer: Payer,
    bytes: usize,
}

impl Bodies {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, taken: Mutex::default() }
    }

    pub(super) fn share(self: &Arc<Self>, payer: Payer) -> Share {
        Share { bodies: self.clone(), payer, bytes: 0 }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Counts alone, each changed whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Reads a whole body, and takes for it as it comes.
    pub(super) async fn read(&mut self, mut body: Incoming, limit_bytes: usize) -> Result<Bytes, Refusal> {
        // Copied, so that a body in tiny pieces takes no more than its bytes.
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Refusal::BrokenOff)?.into_data() else { continue };
            if data.len() > limit_bytes - whole.len() {
                return Err(Refusal::TooLarge { limit_bytes });
            }
            self.take(data.len())?;
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }

    fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        let mut taken = self.bodies.taken();
        let own = taken.by_payer.get(&self.payer).copied().unwrap_or_default();
        let bytes_max = self.bodies.bytes_max;
        if own.saturating_add(bytes) > bytes_max / 2 || taken.bytes.saturating_add(bytes) > bytes_max {
            return Err(Refusal::TooManyBytes);
        }
        taken.bytes += bytes;
        taken.by_payer.insert(self.payer.clone(), own + bytes);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.bodies.taken();
        taken.bytes -= self.bytes;
        if let Some(own) = taken.by_payer.get_mut(&self.payer) {
            *own -= self.bytes;
            if *own == 0 {
                taken.by_payer.remove(&self.payer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_has_half_and_what_is_given_back_is_all_there_again() {
        let bodies = Arc::new(Bodies::new(100));
        let key = |name: &str| bodies.share(Payer::Key(name.to_owned()));
        let (mut first, mut second) = (key("a"), key("a"));
        assert_eq!((first.take(30), second.take(20)), (Ok(()), Ok(())));
        assert_eq!(second.take(1), Err(Refusal::TooManyBytes), "half is taken by a");
        let mut other = key("b");
        assert_eq!(other.take(50), Ok(()));
        assert_eq!(key("c").take(1), Err(Refusal::TooManyBytes), "all is taken");
        drop(first);
        assert_eq!((second.take(30), second.take(1)), (Ok(()), Err(Refusal::TooManyBytes)));
        drop((second, other));
        let taken = bodies.taken();
        assert_eq!((taken.bytes, taken.by_payer.len()), (0, 0));
    }
}
