//! The clients of a run. One thread opens, binds and reads all of them, so that a client costs only its socket and the
//! time to read it.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, SockRef, Socket, Type};

use crate::cli::remote::explained;

use super::clock::now;
use super::report::histogram;
use super::stream::{Secured, Stream};
use super::wire::{Frames, Heard, Part, ping, text};

/// The maximum number of connections being opened at the same time, low enough for any server's backlog.
const AT_ONCE: usize = 128;
/// The number of source addresses for clients of a loopback server, starting with 127.0.0.2. Clients are spread over
/// them, so that no address runs out of ports.
const SOURCES: usize = 16;
const WAKE: Token = Token(usize::MAX);

/// Where clients connect and what they send first.
pub(super) struct Introduction {
    pub(super) address: SocketAddr,
    pub(super) secured: Option<Secured>,
    /// The upgrade request.
    pub(super) upgrade: String,
    /// Builds the bind message of a client.
    pub(super) bind: Box<dyn Fn(usize) -> String + Send>,
}

/// The current state of the clients.
#[derive(Default)]
pub(super) struct Known {
    /// Clients that were upgraded, sent their bind and got an answer to the ping after it.
    pub(super) bound: AtomicUsize,
    /// Clients whose connection ended.
    pub(super) ended: AtomicUsize,
    /// Why the first of these ended.
    pub(super) first_end: Mutex<Option<String>>,
    /// Whether each client has received a probe, and how many have.
    pub(super) reached: Vec<AtomicBool>,
    pub(super) reached_count: AtomicUsize,
    pub(super) warm_up: AtomicU64,
    pub(super) measured: AtomicU64,
    /// When the last measured message arrived.
    pub(super) last_at: AtomicU64,
}

impl Known {
    pub(super) fn why(&self) -> String {
        let first = self.first_end.lock().unwrap_or_else(PoisonError::into_inner);
        first.clone().unwrap_or_else(|| "nothing arrived".to_owned())
    }
}

enum Order {
    /// Open clients up to this total.
    Open(usize),
    /// The clients for which the function returns true stop reading.
    Stall(fn(usize, u32) -> bool, u32),
    Stop,
}

pub(super) struct Clients {
    pub(super) known: Arc<Known>,
    orders: mpsc::Sender<Order>,
    waker: Waker,
    thread: JoinHandle<Histogram<u64>>,
}

impl Clients {
    /// Starts the thread, with room for this many clients.
    pub(super) fn start(introduction: Introduction, count: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let known = Arc::new(Known {
            reached: std::iter::repeat_with(AtomicBool::default).take(count).collect(),
            ..Known::default()
        });
        let (orders, taken) = mpsc::channel();
        let reader = Reader {
            poll,
            introduction,
            clients: Vec::with_capacity(count),
            goal: 0,
            opening: 0,
            known: known.clone(),
            latency: histogram(),
        };
        let thread = std::thread::Builder::new().name("clients".to_owned()).spawn(move || reader.run(&taken))?;
        Ok(Self { known, orders, waker, thread })
    }

    pub(super) fn open(&self, count: usize) -> io::Result<()> {
        self.order(Order::Open(count))
    }

    pub(super) fn stall(&self, which: fn(usize, u32) -> bool, percent: u32) -> io::Result<()> {
        self.order(Order::Stall(which, percent))
    }

    fn order(&self, order: Order) -> io::Result<()> {
        self.orders.send(order).map_err(|_| io::Error::other("the thread of the clients ended"))?;
        self.waker.wake()
    }

    /// Closes all clients and returns the times from push to receipt, in nanoseconds.
    pub(super) fn stop(self) -> io::Result<Histogram<u64>> {
        self.order(Order::Stop)?;
        self.thread.join().map_err(|_| io::Error::other("the thread of the clients ended in a panic"))
    }
}

/// The stage that a client has reached.
enum Stage {
    Connecting,
    /// Holds the part of the upgrade response that has arrived.
    Upgrading(Vec<u8>),
    /// Waits for the answer to the ping after the bind.
    Binding,
    Bound,
}

struct Client {
    stream: Stream,
    stage: Stage,
    frames: Frames,
    had_pong: bool,
}

struct Reader {
    poll: Poll,
    introduction: Introduction,
    /// `None` for a client that ended.
    clients: Vec<Option<Client>>,
    goal: usize,
    opening: usize,
    known: Arc<Known>,
    latency: Histogram<u64>,
}

impl Reader {
    fn run(mut self, orders: &mpsc::Receiver<Order>) -> Histogram<u64> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            if let Err(error) = self.poll.poll(&mut events, None)
                && error.kind() != ErrorKind::Interrupted
            {
                return self.latency;
            }
            for event in &events {
                if event.token() != WAKE {
                    self.ready(event.token().0, event.is_read_closed(), &mut buffer);
                }
            }
            while let Ok(order) = orders.try_recv() {
                match order {
                    Order::Open(goal) => self.goal = goal,
                    Order::Stall(which, percent) => self.stall(which, percent),
                    Order::Stop => {
                        // Closes with a reset, because otherwise thousands of ports would stay in use for a minute.
                        for client in self.clients.iter_mut().flatten() {
                            let _closes_otherwise =
                                SockRef::from(&*client.stream.tcp()).set_linger(Some(std::time::Duration::ZERO));
                        }
                        return self.latency;
                    }
                }
            }
            while self.opening < AT_ONCE && self.clients.len() < self.goal {
                let number = self.clients.len();
                match self.connect(number) {
                    Ok(client) => {
                        self.clients.push(Some(client));
                        self.opening += 1;
                    }
                    Err(error) => {
                        self.clients.push(None);
                        self.ended(format!("cannot connect: {error}"));
                    }
                }
            }
        }
    }

    fn connect(&self, number: usize) -> io::Result<Client> {
        let address = self.introduction.address;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if let IpAddr::V4(ip) = address.ip()
            && ip.is_loopback()
        {
            socket.set_reuse_address(true)?;
            let last = 2 + u8::try_from(number % SOURCES).unwrap_or_default();
            // Only Linux has all of 127.0.0.0/8. On other systems the bind fails and all clients use one address.
            let _from_elsewhere = socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)).into());
        }
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(in_progress()) && error.kind() != ErrorKind::WouldBlock => {
                return Err(error);
            }
            _ => {}
        }
        socket.set_tcp_nodelay(true)?;
        let mut stream = TcpStream::from_std(socket.into());
        self.poll.registry().register(&mut stream, Token(number), Interest::READABLE | Interest::WRITABLE)?;
        let stream = Stream::new(stream, self.introduction.secured.as_ref())?;
        Ok(Client { stream, stage: Stage::Connecting, frames: Frames::default(), had_pong: false })
    }

    fn stall(&mut self, which: fn(usize, u32) -> bool, percent: u32) {
        for (number, client) in self.clients.iter_mut().enumerate() {
            if let Some(client) = client
                && which(number, percent)
            {
                let _reads_on = self.poll.registry().deregister(client.stream.tcp());
            }
        }
    }

    fn ready(&mut self, number: usize, read_closed: bool, buffer: &mut [u8]) {
        let Some(Some(client)) = self.clients.get_mut(number) else { return };
        if let Err(why) =
            client.advance(number, read_closed, buffer, &self.introduction, &self.known, &mut self.latency)
        {
            if !matches!(client.stage, Stage::Bound) {
                self.opening -= 1;
            }
            self.clients[number] = None;
            self.ended(why);
        } else if let Stage::Binding = client.stage
            && client.had_pong
        {
            client.stage = Stage::Bound;
            self.opening -= 1;
            self.known.bound.fetch_add(1, Relaxed);
        }
    }

    fn ended(&self, why: String) {
        self.known.first_end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.known.ended.fetch_add(1, Relaxed);
    }
}

/// `EINPROGRESS`: the connection is being established.
fn in_progress() -> i32 {
    if cfg!(target_os = "linux") { 115 } else { 36 }
}

impl Client {
    /// Makes as much progress as possible without blocking. An error gives the reason why the client ended.
    fn advance(
        &mut self,
        number: usize,
        read_closed: bool,
        buffer: &mut [u8],
        introduction: &Introduction,
        known: &Known,
        latency: &mut Histogram<u64>,
    ) -> Result<(), String> {
        if let Stage::Connecting = self.stage {
            if let Some(error) = self.stream.tcp().take_error().map_err(|error| broke(&error))? {
                return Err(format!("cannot connect: {error}"));
            }
            if self.stream.tcp().peer_addr().is_err() {
                return Ok(());
            }
            self.write(introduction.upgrade.as_bytes())?;
            self.stage = Stage::Upgrading(Vec::new());
        }
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => return Err("the server ended the connection".to_owned()),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(broke(&error)),
            };
            let mut bytes = &buffer[..read];
            let rest;
            if let Stage::Upgrading(head) = &mut self.stage {
                head.extend_from_slice(bytes);
                let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
                let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
                if !line.starts_with(b"HTTP/1.1 101") {
                    return Err(format!("the upgrade was answered {}", String::from_utf8_lossy(line)));
                }
                rest = head[end + 4..].to_vec();
                bytes = &rest;
                self.stage = Stage::Binding;
                let mut frames = text((introduction.bind)(number).as_bytes());
                frames.extend(ping(b"bound?"));
                self.write(&frames)?;
            }
            self.hear(number, bytes, known, latency)?;
            // A read that does not fill the buffer has emptied the socket. The poll reports when more arrives.
            if read < buffer.len() && !read_closed && self.stream.is_emptied_by_a_short_read() {
                return Ok(());
            }
        }
    }

    fn hear(&mut self, number: usize, bytes: &[u8], known: &Known, latency: &mut Histogram<u64>) -> Result<(), String> {
        let came = now();
        let (mut measured, mut warm_up) = (0, 0);
        let mut answers = Vec::new();
        let mut end = None;
        let mut pong = false;
        self.frames.take(bytes, |heard| match heard {
            Heard::Message(Part::Measured, at) => {
                measured += 1;
                latency.saturating_record(came.saturating_sub(at).max(1));
            }
            Heard::Message(Part::WarmUp, _) => warm_up += 1,
            Heard::Message(Part::Probe, _) => {
                if !known.reached[number].swap(true, Relaxed) {
                    known.reached_count.fetch_add(1, Relaxed);
                }
            }
            Heard::Other => {}
            Heard::Ping(answer) => answers.extend(answer),
            Heard::Pong => pong = true,
            Heard::Close(code, reason) => end = Some(format!("the server closed with {code}: {reason}")),
        });
        self.had_pong |= pong;
        if measured > 0 {
            known.last_at.store(came, Relaxed);
            known.measured.fetch_add(measured, Relaxed);
        }
        if warm_up > 0 {
            known.warm_up.fetch_add(warm_up, Relaxed);
        }
        if !answers.is_empty() {
            self.write(&answers)?;
        }
        end.map_or(Ok(()), Err)
    }

    /// Writes a few bytes. The socket has room for them, because almost nothing else is written to it.
    fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.send(bytes).map_err(|error| broke(&error))
    }
}

fn broke(error: &io::Error) -> String {
    explained(&format!("the connection broke: {error}"))
}
