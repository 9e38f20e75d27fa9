//! A link that loses and delays packets, implemented in user space for kernels without netem. It is the far end of a
//! TUN device and sends each packet back to where it came from, as if another machine had sent it.
//!
//! A connection from a near address to [`FAR`] goes over the device and back, and reaches the listener on the near
//! address, which sees [`FAR`] as the peer. Source and destination are swapped, so all checksums stay valid.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_tun::Tun;

use crate::dice::{Dice, Owner};

/// An unassigned address that is routed to the device.
pub(crate) const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

const PACKET_BYTES_MAX: usize = 1500;
/// The offsets of the addresses in the header of an IPv4 packet (RFC 791 section 3.1).
const SOURCE: usize = 12;
const DESTINATION: usize = 16;
const HEADER_BYTES: usize = 20;

/// One packet in this many is lost.
const LOST_ONE_IN: u64 = 100;

/// The one-way delay of a packet, in microseconds.
const DELAY_MIN: u64 = 3000;
const DELAY_MAX: u64 = 7000;
/// The maximum change of the delay from one packet to the next, in microseconds. The delay changes gradually. If each
/// packet had an independent delay, nearly all would wait for the longest one, because packets stay in order.
const DELAY_STEP: u64 = 200;

/// The counts of packets.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Packets {
    pub(crate) passed: u64,
    pub(crate) lost: u64,
}

impl fmt::Display for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, lost } = self;
        write!(f, "{passed} packets passed, {lost} lost")
    }
}

/// A running link.
pub(crate) struct Reflector {
    stop: oneshot::Sender<()>,
    running: JoinHandle<Packets>,
}

impl Reflector {
    /// Starts the link at once. It has its own thread, so that busy tasks do not add to the delay.
    pub(crate) fn of(device: &str, seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tun = {
            let _inside = runtime.enter();
            Tun::builder().name(device).build().unwrap().remove(0)
        };
        let (stop, stopped) = oneshot::channel();
        let dice = Dice::of(seed, Owner::Link);
        let running = std::thread::spawn(move || runtime.block_on(reflect(&tun, dice, stopped)));
        Self { stop, running }
    }

    pub(crate) fn end(self) -> Packets {
        drop(self.stop);
        self.running.join().unwrap()
    }
}

/// Sends packets back until it is stopped. Packets stay in order, because TCP would treat overtaken packets as lost,
/// and only the dice decide what is lost here.
async fn reflect(tun: &Tun, mut dice: Dice, mut stopped: oneshot::Receiver<()>) -> Packets {
    let mut packets = Packets::default();
    let mut on_their_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = [0; PACKET_BYTES_MAX];
    let mut delay = (DELAY_MIN + DELAY_MAX) / 2;
    loop {
        let next = on_their_way.front().map(|(arrival, _)| sleep_until(*arrival));
        tokio::select! {
            biased;
            _ = &mut stopped => return packets,
            Some(()) = OptionFuture::from(next) => {
                let (_, packet) = on_their_way.pop_front().expect("it has arrived");
                tun.send(&packet).await.unwrap();
                packets.passed += 1;
            }
            received = tun.recv(&mut buffer) => {
                let packet = &mut buffer[..received.unwrap()];
                if !is_ipv4(packet) {
                    continue;
                }
                if dice.one_in(LOST_ONE_IN) {
                    packets.lost += 1;
                    continue;
                }
                send_back(packet);
                delay = (delay + dice.below(2 * DELAY_STEP + 1) - DELAY_STEP).clamp(DELAY_MIN, DELAY_MAX);
                let arrival = Instant::now() + Duration::from_micros(delay);
                let before = on_their_way.back().map_or(arrival, |(before, _)| *before);
                on_their_way.push_back((arrival.max(before), packet.to_vec()));
            }
        }
    }
}

/// Whether the packet is IPv4. The kernel also sends IPv6 router solicitations on its own.
fn is_ipv4(packet: &[u8]) -> bool {
    packet.len() >= HEADER_BYTES && packet[0] >> 4 == 4
}

fn send_back(packet: &mut [u8]) {
    let (before, destination) = packet.split_at_mut(DESTINATION);
    before[SOURCE..].swap_with_slice(&mut destination[..HEADER_BYTES - DESTINATION]);
}
