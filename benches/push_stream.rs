//! Compares `PushStream` with unary `Push`. Sends the same messages to the same connections, alternating between the
//! two in one run, over one HTTP/2 connection to a gateway in its own process.
//!
//! ```sh
//! cargo bench --bench push_stream
//! ```
//!
//! Counts the CPU time of the gateway alone, and of everything including callers and readers. A turn ends when every
//! connection has received every byte. Needs Linux's `/proc`.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

#[path = "../tests/support/process.rs"]
mod process;
mod support;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use process::{GatewayProcess, pushgate};
use pushgate::proto::push_request::Payload;
use pushgate::proto::push_result::Result as ResultOf;
use pushgate::proto::push_service_client::PushServiceClient;
use pushgate::proto::{PushBatchRequest, PushBatchResponse, PushRequest, PushResponse, PushResult, PushStreamRequest};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::transport::Channel;

const MESSAGE: &str = "a small message of 32 bytes text";
/// The number of messages of one turn, large enough that each way takes many of the kernel's clock ticks.
const UNARY_MESSAGES: u32 = 15_000;
const STREAM_MESSAGES: u32 = 120_000;
const ROUNDS: usize = 5;
/// The number of unary calls open at the same time on the one connection. The gateway allows 256.
const CALLS: usize = 128;
/// The number of pushes in one batch, and of batches open at the same time.
const BATCH: u32 = 100;
const BATCHES: usize = 8;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for connections in [1, 8] {
            compare(connections).await;
        }
        compare_without_receiver().await;
    });
}

/// What the way into the gateway and back costs by itself: messages to a user without a connection.
async fn compare_without_receiver() {
    let mut bench = Bench::start().await;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push((bench.turn(Way::Stream).await, bench.turn(Way::Batch).await));
    }
    println!("messages to nobody, a stream beside batches of {BATCH}, medians of {ROUNDS} rounds");
    println!("                               stream       batch   ratio");
    print_rows(&rounds);
}

async fn compare(connections: usize) {
    let mut bench = Bench::start().await;
    for _ in 0..connections {
        let bind = r#"{"token":"ann","event":"mail"}"#;
        bench.readers.push(support::connect(bench.gateway.clients, "", bind).await);
    }
    bench.until_bound().await;

    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push((bench.turn(Way::Unary).await, bench.turn(Way::Stream).await));
    }
    let plural = if connections == 1 { "" } else { "s" };
    println!("messages of {} bytes to {connections} connection{plural}, medians of {ROUNDS} rounds", MESSAGE.len());
    println!("                                unary      stream   ratio");
    print_rows(&rounds);
}

fn print_rows(rounds: &[(Cost, Cost)]) {
    print_row("msg/s per core of all", rounds, |cost| cost.gateway + cost.callers);
    print_row("msg/s per gateway core", rounds, |cost| cost.gateway);
    print_row("msg/s", rounds, |cost| cost.wall);
}

/// Prints one line. The ratio is the median of the ratios of all rounds, because the two turns of one round share the
/// same load on the machine.
fn print_row(what: &str, rounds: &[(Cost, Cost)], of: fn(&Cost) -> Duration) {
    let median = |value: &dyn Fn(f64, f64) -> f64| {
        let values = rounds.iter().map(|(unary, stream)| value(of(unary).as_secs_f64(), of(stream).as_secs_f64()));
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let unary = median(&|unary, _| unary.recip());
    let stream = median(&|_, stream| stream.recip());
    let ratio = median(&|unary, stream| unary / stream);
    println!("  {what:<24} {unary:>10.0}  {stream:>10.0}  {ratio:>5.1} x");
}

#[derive(Clone, Copy)]
enum Way {
    Unary,
    Stream,
    Batch,
}

struct Bench {
    gateway: GatewayProcess,
    caller: PushServiceClient<Channel>,
    readers: Vec<TcpStream>,
}

impl Bench {
    async fn start() -> Self {
        let gateway = GatewayProcess::start_as(
            pushgate()
                // Pushes are faster than the readers. The gateway must not close the readers for what is queued.
                .env("PUSHGATE_OUTBOX_MESSAGES_MAX", "1000000")
                .env("PUSHGATE_OUTBOX_BYTES_MAX", "1000000000")
                // The readers do not answer pings.
                .env("PUSHGATE_PING_INTERVAL", "1h"),
        );
        let channel = Channel::from_shared(format!("http://{}", gateway.control)).unwrap().connect().await.unwrap();
        Self { caller: PushServiceClient::new(channel), readers: Vec::new(), gateway }
    }

    /// Pushes until all readers are bound, then reads the messages that these pushes sent.
    async fn until_bound(&mut self) {
        let expected = self.readers.len() as u64;
        let mut sent = 0;
        loop {
            let accepted = self.caller.push(push()).await.unwrap().into_inner().accepted;
            sent += accepted;
            if accepted == expected {
                break;
            }
        }
        // Readers that were bound earlier got more messages. In total, this many bytes are on their way.
        let mut left = usize::try_from(sent).unwrap() * FRAME_BYTES;
        let mut buffer = vec![0; 64 * 1024];
        while left > 0 {
            for reader in &mut self.readers {
                if let Ok(read) = reader.try_read(&mut buffer) {
                    left -= read;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Runs one turn, until the last byte has arrived on the last connection. Returns the cost per message.
    async fn turn(&mut self, way: Way) -> Cost {
        let messages = match way {
            Way::Unary => UNARY_MESSAGES,
            Way::Stream | Way::Batch => STREAM_MESSAGES,
        };
        let before = self.clocks();
        let bytes = messages as usize * FRAME_BYTES;
        let readers = self.readers.drain(..).map(|reader| tokio::spawn(drain(reader, bytes))).collect::<Vec<_>>();
        let accepted = match way {
            Way::Unary => self.unary(messages).await,
            Way::Stream => self.stream(messages).await,
            Way::Batch => self.batch(messages).await,
        };
        assert_eq!(accepted, u64::from(messages) * readers.len() as u64, "every connection took every message");
        for reader in readers {
            self.readers.push(reader.await.unwrap());
        }
        let after = self.clocks();
        Cost {
            wall: (after.wall - before.wall) / messages,
            gateway: (after.gateway - before.gateway) / messages,
            callers: (after.callers - before.callers) / messages,
        }
    }

    async fn unary(&self, messages: u32) -> u64 {
        let mut accepted = 0;
        let mut open = FuturesUnordered::new();
        let call = || {
            let mut caller = self.caller.clone();
            async move { caller.push(push()).await.unwrap().into_inner() }
        };
        for _ in 0..messages {
            if open.len() == CALLS {
                accepted += open.next().await.map_or(0, |response: PushResponse| response.accepted);
            }
            open.push(call());
        }
        while let Some(response) = open.next().await {
            accepted += response.accepted;
        }
        accepted
    }

    async fn stream(&self, messages: u32) -> u64 {
        let messages =
            (0..messages).map(|number| PushStreamRequest { correlation_id: number.to_string(), push: Some(push()) });
        let mut caller = self.caller.clone();
        let mut results = caller.push_stream(tokio_stream::iter(messages)).await.unwrap().into_inner();
        let mut accepted = 0;
        while let Some(response) = results.message().await.unwrap() {
            match response.result.and_then(|result| result.result) {
                Some(ResultOf::Outcome(outcome)) => accepted += outcome.accepted,
                other => panic!("{other:?}"),
            }
        }
        accepted
    }

    async fn batch(&self, messages: u32) -> u64 {
        let mut accepted = 0;
        let mut open = FuturesUnordered::new();
        for _ in 0..messages / BATCH {
            let mut caller = self.caller.clone();
            let pushes = (0..BATCH).map(|_| push()).collect();
            open.push(async move { caller.push_batch(PushBatchRequest { pushes }).await.unwrap().into_inner() });
            if open.len() == BATCHES {
                accepted += open.next().await.map_or(0, |response| accepted_of(&response));
            }
        }
        while let Some(response) = open.next().await {
            accepted += accepted_of(&response);
        }
        accepted
    }

    fn clocks(&self) -> Cost {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let gateway = processor_time(&self.gateway.process.id().to_string());
        Cost { wall: START.elapsed(), gateway, callers: processor_time("self") }
    }
}

fn accepted_of(response: &PushBatchResponse) -> u64 {
    let accepted = |result: &PushResult| match &result.result {
        Some(ResultOf::Outcome(outcome)) => outcome.accepted,
        other => panic!("{other:?}"),
    };
    response.results.iter().map(accepted).sum()
}

fn push() -> PushRequest {
    PushRequest {
        user_id: "ann".to_owned(),
        event: "mail".to_owned(),
        payload: Some(Payload::Message(MESSAGE.to_owned())),
        ..PushRequest::default()
    }
}

/// The size of a message as a client receives it: two bytes of frame header, then the message.
const FRAME_BYTES: usize = 2 + MESSAGE.len();

/// Reads this many bytes.
async fn drain(mut stream: TcpStream, bytes: usize) -> TcpStream {
    let mut left = bytes;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let most = buffer.len().min(left);
        let read = stream.read(&mut buffer[..most]).await.unwrap();
        assert!(read > 0, "the gateway closed a reader");
        left -= read;
    }
    stream
}

/// The cost of a message, or the readings of three clocks at one moment.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    gateway: Duration,
    callers: Duration,
}

/// The CPU time that a process has used on all cores, in user and kernel mode.
fn processor_time(process: &str) -> Duration {
    /// The unit of CPU time in `/proc`, the same on every architecture.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("Linux's /proc is needed");
    // Reads the 14th and 15th fields. The process name before them may hold any text, but ends with the last bracket.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: u32 = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    TICK * ticks
}
