//! One run: open and bind the clients, check that all are bound, warm up, measure, wait for the last receipt, and
//! report.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio_util::sync::CancellationToken;

use super::callers::Caller;
use super::calls::{Call, Calls, Schedule};
use super::clients::{Clients, Introduction, Known};
use super::clock::{Timer, now};
use super::process::Usage;
use super::progress::Progress;
use super::report::{Deliveries, Report, Server, Times};
use super::target::{Target, is_stalled};
use super::wire::Part;
use super::{Bench, Door, Shape, plot};
use crate::cli::{Outcome, print};

type RunError = Box<dyn Error>;

/// How often a wait checks its condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

pub(super) struct Run {
    pub(super) bench: Bench,
    pub(super) target: Arc<Target>,
    pub(super) pid: Option<i32>,
}

/// The cost of opening the clients, for the server.
struct Opened {
    processor: Option<Duration>,
    bytes_per_connection: Option<f64>,
}

/// The results of the measured part.
struct Measured {
    calls: Calls,
    began: u64,
    seconds: f64,
    processor: Option<Duration>,
}

impl Run {
    pub(super) async fn go(self, introduction: Introduction) -> Outcome {
        // Fails early if the server's process cannot be read.
        self.usage()?;
        let stop = CancellationToken::new();
        let interrupted = stop.clone();
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupted.cancel();
            }
        });
        let clients = Clients::start(introduction, self.target.connections)?;
        let progress = Progress::new();
        let opened = tokio::select! {
            opened = self.open(&clients, &progress) => opened?,
            () = stop.cancelled() => return Err("interrupted before all clients were bound".into()),
        };
        let measured = if self.bench.hold {
            self.hold(&clients.known, &progress, &stop).await?
        } else {
            self.push(&clients, &progress, &stop).await?
        };
        drop(progress);
        let known = clients.known.clone();
        let report = self.report(&opened, &measured, &known, stop.is_cancelled())?;
        let receipt = clients.stop()?;
        self.print(report, &measured.calls.latency, &receipt)?;
        match measured.calls.first_failure {
            Some(why) if measured.calls.pushes == 0 => Err(format!("no push was answered: {why}").into()),
            _ => Ok(()),
        }
    }

    fn usage(&self) -> Result<Option<Usage>, String> {
        self.pid.map(Usage::of).transpose()
    }

    async fn open(&self, clients: &Clients, progress: &Progress) -> Result<Opened, RunError> {
        let count = self.target.connections;
        let few = self.bench.memory_from.map_or(Ok(count / 8), usize::try_from)?;
        let before = self.usage()?;
        let mut at_few = None;
        for goal in [few, count] {
            if goal > 0 {
                clients.open(goal)?;
                self.until_bound(&clients.known, goal, progress).await?;
            }
            if goal == few && goal > 0 && goal < count {
                at_few = self.usage()?;
            }
        }
        let after = self.usage()?;
        let bytes_per_connection = at_few.zip(after).map(|(few_usage, after)| {
            (after.resident_bytes as f64 - few_usage.resident_bytes as f64) / (count - few) as f64
        });
        let processor = before.zip(after).map(|(before, after)| after.processor - before.processor);
        Ok(Opened { processor, bytes_per_connection })
    }

    async fn until_bound(&self, known: &Known, goal: usize, progress: &Progress) -> Result<(), RunError> {
        let (mut bound, mut since) = (0, Instant::now());
        loop {
            let now_bound = known.bound.load(Relaxed);
            if now_bound >= goal {
                return Ok(());
            }
            if known.ended.load(Relaxed) > 0 {
                return Err(format!("client {} of {goal} was not bound: {}", now_bound + 1, known.why()).into());
            }
            if now_bound > bound {
                (bound, since) = (now_bound, Instant::now());
            } else if since.elapsed() > self.bench.patience {
                return Err(format!("only {bound} of {goal} clients were bound; {}", known.why()).into());
            }
            progress.show(&format!("{bound} clients bound"), bound as f64 / self.target.connections as f64);
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn hold(&self, known: &Known, progress: &Progress, stop: &CancellationToken) -> Result<Measured, RunError> {
        let (before, began) = (self.usage()?, now());
        let end = Instant::now() + self.bench.duration;
        while Instant::now() < end && !stop.is_cancelled() && known.ended.load(Relaxed) < self.target.connections {
            let left = end.saturating_duration_since(Instant::now());
            progress.show("holding", 1.0 - left.as_secs_f64() / self.bench.duration.as_secs_f64());
            tokio::select! {
                () = tokio::time::sleep(left.min(Duration::from_millis(200))) => {}
                () = stop.cancelled() => {}
            }
        }
        let processor = before.zip(self.usage()?).map(|(before, after)| after.processor - before.processor);
        Ok(Measured { calls: Calls::new(), began, seconds: (now() - began) as f64 / 1e9, processor })
    }

    async fn push(
        &self,
        clients: &Clients,
        progress: &Progress,
        stop: &CancellationToken,
    ) -> Result<Measured, RunError> {
        let count = if self.bench.door == Door::Stream { 1 } else { self.bench.callers() as usize };
        let unreachable = |error| format!("cannot reach the push address {}: {error}", self.target.push_address);
        let mut callers = Caller::several(&self.target, count).await.map_err(unreachable)?;
        self.until_reached(&mut callers[0], &clients.known, progress).await?;
        if self.bench.stalled > 0 {
            clients.stall(is_stalled, self.bench.stalled)?;
        }
        if !self.bench.warm_up.is_zero() {
            let warm_up = self.part(Part::WarmUp, self.bench.warm_up, &mut callers, progress, stop).await?;
            self.until_received(&clients.known, Part::WarmUp, warm_up.expected).await;
        }
        let (before, began) = (self.usage()?, now());
        let calls = self.part(Part::Measured, self.bench.duration, &mut callers, progress, stop).await?;
        let seconds = (now() - began) as f64 / 1e9;
        self.until_received(&clients.known, Part::Measured, calls.expected).await;
        let processor = before.zip(self.usage()?).map(|(before, after)| after.processor - before.processor);
        Ok(Measured { calls, began, seconds, processor })
    }

    /// Pushes until every client has received a message, so that all clients are known to be bound before the
    /// measurement.
    async fn until_reached(&self, caller: &mut Caller, known: &Known, progress: &Progress) -> Result<(), RunError> {
        let (mut reached, mut since) = (0, Instant::now());
        loop {
            for client in 0..self.target.connections {
                if !known.reached[client].load(Relaxed) {
                    let pushed = caller.push(&self.target, client, Part::Probe, now(), self.bench.bytes as usize).await;
                    pushed?.map_err(|why| format!("the first push was refused: {why}"))?;
                    if self.target.shape != Shape::Many {
                        break;
                    }
                    if client % 100 == 0 {
                        progress.show(
                            "checking that all clients are bound",
                            client as f64 / self.target.connections as f64,
                        );
                    }
                }
            }
            let retry_at = Instant::now() + Duration::from_millis(200);
            while Instant::now() < retry_at {
                let now_reached = known.reached_count.load(Relaxed);
                if now_reached == self.target.connections {
                    return Ok(());
                }
                if now_reached > reached {
                    (reached, since) = (now_reached, Instant::now());
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            if since.elapsed() > self.bench.patience {
                let count = self.target.connections;
                return Err(
                    format!("only {reached} of {count} clients received the pushed message; {}", known.why()).into()
                );
            }
        }
    }

    /// Pushes for the duration and returns the results of all calls.
    async fn part(
        &self,
        part: Part,
        duration: Duration,
        callers: &mut Vec<Caller>,
        progress: &Progress,
        stop: &CancellationToken,
    ) -> Result<Calls, RunError> {
        let batch = if self.bench.door == Door::Batch { usize::from(self.bench.batch) } else { 1 };
        let calls_per_second = self.bench.rate.map(|rate| rate / batch as f64);
        let schedule = Arc::new(Schedule::new(duration, calls_per_second, stop.clone()));
        let target = self.target.clone();
        let call = Arc::new(Call { target, schedule: schedule.clone(), part, bytes: self.bench.bytes as usize, batch });
        let mut tasks = Vec::with_capacity(callers.len());
        if self.bench.door == Door::Stream {
            let Some(Caller::Grpc(caller)) = callers.first() else { return Err("no caller".into()) };
            let in_flight = self.bench.callers() as usize;
            let streaming = caller.clone().stream(call, in_flight, Timer::new()?);
            tasks.push(tokio::spawn(async move { (None, streaming.await) }));
        } else {
            for caller in callers.drain(..) {
                let running = caller.run(call.clone());
                tasks.push(tokio::spawn(async move {
                    let (caller, calls) = running.await;
                    (Some(caller), calls)
                }));
            }
        }
        let mut all = Calls::new();
        let began = Instant::now();
        for mut task in tasks {
            let (caller, calls) = loop {
                tokio::select! {
                    done = &mut task => break done?,
                    () = tokio::time::sleep(Duration::from_millis(200)) => {
                        let what = if part == Part::WarmUp { "warming up" } else { "measuring" };
                        let pushed = schedule.pushed.load(Relaxed);
                        let done = began.elapsed().as_secs_f64() / duration.as_secs_f64();
                        progress.show(&format!("{what}, {pushed} pushes answered"), done);
                    }
                }
            };
            callers.extend(caller);
            all.add(calls);
        }
        Ok(all)
    }

    /// Waits until all expected messages have arrived, or no more arrive within the patience.
    async fn until_received(&self, known: &Known, part: Part, expected: u64) {
        let count = if part == Part::WarmUp { &known.warm_up } else { &known.measured };
        let (mut received, mut since) = (0, Instant::now());
        while count.load(Relaxed) < expected && since.elapsed() < self.bench.patience {
            let now_received = count.load(Relaxed);
            if now_received > received {
                (received, since) = (now_received, Instant::now());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn report(
        &self,
        opened: &Opened,
        measured: &Measured,
        known: &Known,
        interrupted: bool,
    ) -> Result<Report, RunError> {
        let calls = &measured.calls;
        let received = known.measured.load(Relaxed);
        let receiving = known.last_at.load(Relaxed).saturating_sub(measured.began) as f64 / 1e9;
        let ended = known.ended.load(Relaxed);
        Ok(Report {
            url: self.bench.url.clone(),
            door: if self.bench.hold { "none" } else { self.bench.door.name() },
            to: self.bench.to.name(),
            connections: self.target.connections,
            reading: self.target.reading(),
            connections_ended: ended,
            first_end: (ended > 0).then(|| known.why()),
            message_bytes: self.bench.bytes as usize,
            rate: self.bench.rate,
            interrupted,
            seconds: measured.seconds,
            pushes: calls.pushes,
            pushes_per_second: calls.pushes as f64 / measured.seconds,
            failures: calls.failures,
            first_failure: calls.first_failure.clone(),
            deliveries: Deliveries {
                expected: calls.expected,
                accepted: calls.accepted,
                received,
                lost: calls.expected.saturating_sub(received),
                per_second: if receiving > 0.0 { received as f64 / receiving } else { 0.0 },
            },
            push_call_us: Times::new(&calls.latency),
            push_to_receipt_us: Times::new(&super::report::histogram()),
            server: self.server(opened, measured, received)?,
        })
    }

    fn server(&self, opened: &Opened, measured: &Measured, received: u64) -> Result<Option<Server>, RunError> {
        let (Some(pid), Some(opening), Some(processor)) = (self.pid, opened.processor, measured.processor) else {
            return Ok(None);
        };
        let microseconds = processor.as_secs_f64() * 1e6;
        let each = |count: u64| (count > 0).then(|| microseconds / count as f64);
        let connections = self.target.connections as f64;
        Ok(Some(Server {
            pid,
            cpu_us_per_push: each(measured.calls.pushes),
            cpu_us_per_delivery: each(received),
            cpu_us_per_connection_opened: opening.as_secs_f64() * 1e6 / connections,
            idle_cpu_us_per_connection_second: self.bench.hold.then(|| microseconds / measured.seconds / connections),
            resident_bytes: self.usage()?.map_or(0, |usage| usage.resident_bytes),
            resident_bytes_per_connection: opened.bytes_per_connection,
        }))
    }

    fn print(&self, mut report: Report, call: &Histogram<u64>, receipt: &Histogram<u64>) -> Outcome {
        report.push_to_receipt_us = Times::new(receipt);
        if let Some(file) = &self.bench.plot {
            let title = format!(
                "{} connections, to {}, door {}, {:.0} pushes a second",
                report.connections, report.to, report.door, report.pushes_per_second
            );
            let svg = plot::svg(&title, &[("push call", "#c2410c", call), ("push to receipt", "#1d4ed8", receipt)]);
            std::fs::write(file, svg).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        }
        let text = if self.bench.json { report.json() } else { report.table() };
        print::product(format!("{text}\n").as_bytes())
    }
}
