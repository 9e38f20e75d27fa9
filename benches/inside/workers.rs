//! What a second worker brings: pushes a second in memory, on a runtime of two workers and on one of one.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pushgate::Push;
use pushgate::inside::Inside;
use rustix::time::ClockId;
use tokio::runtime::Builder;

use super::connections::connect;
use super::{Dice, Figure, config, cpu_time, figure, median, pushed};

const CONNECTIONS: usize = 10_000;
/// Callers for each worker, so that no worker is ever without one.
const CALLERS: usize = 4;
/// Different pushes of a caller.
const PUSHES: usize = 1024;
/// Pushes of a caller before others have their turn: a share of all.
const TURN: usize = 64;
const ROUNDS: usize = 7;
const DURATION: Duration = Duration::from_secs(1);

/// What one run came to.
#[derive(Clone, Copy)]
struct Pace {
    pushes_per_second: f64,
    cpu_per_push: f64,
}

/// To whom a caller pushes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Users {
    /// To anybody, so that the workers take what belongs to a user out of each other's caches.
    Any,
    /// To users whom no other caller pushes to.
    Own,
}

pub(super) fn measure() -> Vec<Figure> {
    let to = [(Users::Own, "each caller to its own users"), (Users::Any, "each caller to all users")];
    to.into_iter().flat_map(|(users, title)| compare(users, title)).collect()
}

fn compare(users: Users, title: &str) -> Vec<Figure> {
    // In turns, so that both have the same share of what else the machine does.
    let rounds: Vec<_> = (0..ROUNDS).map(|_| (pace(1, users), pace(2, users))).collect();
    let of = |value: fn(&(Pace, Pace)) -> f64| rounds.iter().map(value).collect::<Vec<_>>();
    let times = of(|(one, two)| two.pushes_per_second / one.pushes_per_second);
    let best = times.iter().copied().fold(0.0, f64::max);
    // What two workers would do with two whole cores: each second of theirs has as many pushes as their CPU time says.
    let by_cpu_time = of(|(one, two)| 2.0 * one.cpu_per_push / two.cpu_per_push);
    vec![
        figure(format!("{title}: pushes a second, one worker"), median(of(|(one, _)| one.pushes_per_second)), "pushes"),
        figure("  pushes a second, two workers", median(of(|(_, two)| two.pushes_per_second)), "pushes"),
        figure("  CPU time a push, one worker", median(of(|(one, _)| one.cpu_per_push)), "ns"),
        figure("  CPU time a push, two workers", median(of(|(_, two)| two.cpu_per_push)), "ns"),
        figure("  two workers over one, median", median(times), "times").should_be("at least 1.9, with two idle cores"),
        figure("  two workers over one, best", best, "times"),
        figure("  two workers over one, by CPU time", median(by_cpu_time), "times").should_be("at least 1.9"),
    ]
}

fn pace(workers: usize, users: Users) -> Pace {
    let runtime = Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap();
    let pace = runtime.block_on(async move {
        let inside = Arc::new(Inside::start(config()).await.unwrap());
        let sockets: Vec<_> = (0..CONNECTIONS).map(|number| connect(&inside, number)).collect();
        while inside.bindings() < CONNECTIONS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let callers = workers * CALLERS;
        let share = CONNECTIONS / callers;
        let callers = (0..callers).map(|place| {
            let users = if users == Users::Own { place * share..(place + 1) * share } else { 0..CONNECTIONS };
            Caller::new(place, users, &inside, &is_over)
        });
        let callers: Vec<_> = callers.collect();
        let (started_at, cpu_before) = (Instant::now(), cpu_time(ClockId::ProcessCPUTime));
        let callers: Vec<_> = callers.into_iter().map(|caller| tokio::spawn(caller.call())).collect();
        tokio::time::sleep(DURATION).await;
        is_over.store(true, Ordering::Relaxed);
        let mut pushes = 0;
        for caller in callers {
            pushes += caller.await.unwrap();
        }
        let (took, cpu) = (started_at.elapsed(), cpu_time(ClockId::ProcessCPUTime) - cpu_before);
        assert!(sockets.iter().any(|socket| socket.written() > 0), "what was pushed was written");
        Pace {
            pushes_per_second: pushes as f64 / took.as_secs_f64(),
            cpu_per_push: cpu.as_nanos() as f64 / pushes as f64,
        }
    });
    runtime.shutdown_background();
    pace
}

/// Pushes to one user after the other.
struct Caller {
    inside: Arc<Inside>,
    pushes: Vec<Push>,
    is_over: Arc<AtomicBool>,
}

impl Caller {
    fn new(place: usize, users: Range<usize>, inside: &Arc<Inside>, is_over: &Arc<AtomicBool>) -> Self {
        let mut dice = Dice(0x5eed + place as u64);
        let mut user = || format!("user-{}", users.start + dice.below(users.len()));
        let pushes = (0..PUSHES).map(|_| Push::new(user(), "mail", "a message like many others").unwrap()).collect();
        Self { inside: inside.clone(), pushes, is_over: is_over.clone() }
    }

    /// Returns how often it pushed.
    async fn call(self) -> usize {
        let mut count = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            for push in &self.pushes[count % PUSHES..][..TURN] {
                assert_eq!(pushed(self.inside.gateway(), push).accepted, 1);
            }
            count += TURN;
            tokio::task::yield_now().await;
        }
        count
    }
}
