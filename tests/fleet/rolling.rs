//! Rolling restarts behind HAProxy, set up as the README says.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::crowd::{Crowd, Story, Sum};
use crate::process::{GatewayProcess, Process, pushgate};
use crate::pushing::Pushing;
use crate::{address, alone, readme, size, tools, until};

const PATIENCE: Duration = Duration::from_secs(120);

/// What the README's configuration of HAProxy calls its own address and those of the gateways.
const PROXY: &str = "bind :8080";
const GATEWAYS: [&str; 2] = ["10.0.0.11:12345", "10.0.0.12:12345"];
/// And what it calls them.
const NAMES: [&str; 2] = ["a", "b"];

/// Longer than a client is away, so that what is pushed meanwhile is held where it comes back.
const TTL: Duration = Duration::from_secs(60);

/// The README's HAProxy, before these gateways.
struct Proxy {
    process: Process,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Proxy {
    fn start(gateways: &[SocketAddr]) -> Self {
        let address = address(3);
        let mut config = readme::example("haproxy");
        let places = [PROXY].into_iter().chain(GATEWAYS);
        let bind = format!("bind {address}");
        let others = [bind].into_iter().chain(gateways.iter().map(SocketAddr::to_string));
        for (place, other) in places.zip(others) {
            assert!(config.contains(place), "the README's HAProxy has no {place}");
            config = config.replace(place, &other);
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let process = Process::start(tools::program("haproxy").arg("-db").arg("-f").arg(file));
        Self { process, address, _folder: folder }
    }

    /// How often HAProxy has found a gateway ready again.
    fn ups(&self, name: &str) -> usize {
        self.process.stderr().matches(&format!("Server gateways/{name} is UP")).count()
    }
}

fn start(address: SocketAddr, drain_period: Duration) -> GatewayProcess {
    let mut command = pushgate();
    // As the README says, but for the times, which are those of a test.
    command.env("PUSHGATE_SHUTDOWN_DELAY", "5s");
    command.env("PUSHGATE_DRAIN_PERIOD", format!("{}s", drain_period.as_secs()));
    command.env("PUSHGATE_RECONNECT_SPREAD", "2s");
    command.env("PUSHGATE_PROXIES_TRUSTED", "127.0.0.0/8");
    tokio::task::block_in_place(|| GatewayProcess::start_at(&mut command, &address.to_string()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs HAProxy, and takes a minute"]
async fn a_rolling_restart_loses_no_message_and_breaks_no_connection() {
    let _alone = alone().await;
    let clients = size("PUSHGATE_FLEET_CLIENTS", 500);
    let restarts = size("PUSHGATE_FLEET_RESTARTS", 1);
    let drain_period = Duration::from_secs(size("PUSHGATE_FLEET_DRAIN_SECONDS", 10) as u64);
    let addresses = [address(1), address(2)];
    let mut gateways = addresses.map(|address| Some(start(address, drain_period)));
    let proxy = Proxy::start(&addresses);
    until("HAProxy listens", PATIENCE, || std::net::TcpStream::connect(proxy.address).is_ok()).await;
    let crowd = Crowd::come(proxy.address, clients, None).await;
    let pushing = Pushing::start(&addresses, clients, clients / 25, Some(TTL));
    let mut peaks = Vec::new();
    for _ in 0..restarts {
        for (at, name) in NAMES.iter().enumerate() {
            crowd.take_handshakes();
            let ups = proxy.ups(name);
            let mut gateway = gateways[at].take().unwrap();
            gateway.signal("TERM");
            let patience = PATIENCE + drain_period;
            tokio::task::block_in_place(|| gateway.process.wait_for(patience));
            let log = gateway.stderr();
            assert!(log.contains("stopped, nothing was cut"), "{log}");
            crowd.all_bound(PATIENCE).await;
            peaks.extend(peak_over_mean(&crowd.take_handshakes(), drain_period / 10));
            gateways[at] = Some(start(addresses[at], drain_period));
            until("HAProxy finds the gateway ready", PATIENCE, || proxy.ups(name) > ups).await;
        }
    }
    let pushed = pushing.stop().await;
    let stories = crowd.go(&pushed.promised, PATIENCE).await;
    let sum = Sum::of(&stories);
    let promised: usize = pushed.promised.iter().map(Vec::len).sum();
    let lost: usize = stories.iter().map(|story: &Story| story.lost(&pushed.promised[story.number])).sum();
    peaks.sort_by(f64::total_cmp);
    let (median, peak) = (peaks[peaks.len() / 2], peaks[peaks.len() - 1]);
    println!(
        "{clients} clients, {restarts} rolling restarts of 2 gateways: {} messages, {promised} accepted or held, {} received, \
         {lost} lost, {} copies; {} came back, {} refused, closes {:?}; peak of new handshakes over their mean: {median:.2} in \
         the middle of {}, {peak:.2} at worst",
        pushed.pushes,
        sum.distinct,
        sum.received - sum.distinct,
        sum.begun_anew + sum.resumed,
        sum.refused,
        sum.closes,
        peaks.len(),
    );
    assert_eq!((promised as u64, lost), (pushed.pushes, 0));
    assert_eq!(sum.refused, 0, "nobody was refused");
    assert_eq!(sum.closes.keys().collect::<Vec<_>>(), [&1012], "nobody was closed in another way");
    assert!(clients < 5000 || peak <= 1.5, "{peak}");
}

/// The most handshakes in a window of this length over the mean, from the first to the last.
fn peak_over_mean(handshakes: &[Instant], window: Duration) -> Option<f64> {
    let (first, last) = (handshakes.iter().min()?, handshakes.iter().max()?);
    let windows = (last.duration_since(*first).as_secs_f64() / window.as_secs_f64()).max(1.0);
    let mut counts = vec![0_u32; windows.ceil() as usize + 1];
    for handshake in handshakes {
        counts[(handshake.duration_since(*first).as_secs_f64() / window.as_secs_f64()) as usize] += 1;
    }
    println!("new handshakes in each tenth of the drain period: {counts:?}");
    let most = counts.into_iter().max()?;
    Some(f64::from(most) / (handshakes.len() as f64 / windows))
}
