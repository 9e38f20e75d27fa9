//! Services that push to every user in turn, each message to every gateway, and keep what they were promised.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use pushgate::proto::PushRequest;
use pushgate::proto::push_service_client::PushServiceClient;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::support::push_request;
use crate::{EVENT, user};

const SERVICES: usize = 8;

/// How long one push may take, a new connection to its gateway included.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the services were told.
#[derive(Debug, Default)]
pub(crate) struct Pushed {
    /// For each user, the numbers of the messages that some gateway took: it has them in an outbox, or holds them.
    pub(crate) promised: Vec<Vec<u64>>,
    pub(crate) pushes: u64,
    /// Messages that no gateway took, and the answers said so.
    pub(crate) refused: u64,
    /// Answers that were errors.
    pub(crate) errors: u64,
}

pub(crate) struct Pushing {
    is_over: Arc<AtomicBool>,
    services: Vec<JoinHandle<Pushed>>,
}

impl Pushing {
    /// Pushes so many messages a second, with this time to live. The numbers of a user's messages go up from 1.
    pub(crate) fn start(gateways: &[SocketAddr], users: usize, rate: usize, ttl: Option<Duration>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let services = (0..SERVICES).map(|service| {
            let open =
                |address: &SocketAddr| Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
            let channels = gateways.iter().map(|address| PushServiceClient::new(open(address))).collect();
            let pause = Duration::from_secs(1) * SERVICES as u32 / rate as u32;
            tokio::spawn(push(channels, service, users, pause, ttl, is_over.clone()))
        });
        Self { services: services.collect(), is_over }
    }

    /// Has each user pushed to once more, and returns what was promised.
    pub(crate) async fn stop(self) -> Pushed {
        self.is_over.store(true, Ordering::Relaxed);
        let mut sum = Pushed::default();
        for pushed in join_all(self.services).await {
            let pushed = pushed.unwrap();
            sum.promised.resize(pushed.promised.len(), Vec::new());
            for (all, its) in sum.promised.iter_mut().zip(pushed.promised) {
                all.extend(its);
            }
            sum.pushes += pushed.pushes;
            sum.refused += pushed.refused;
            sum.errors += pushed.errors;
        }
        sum
    }
}

async fn push(
    mut gateways: Vec<PushServiceClient<Channel>>,
    service: usize,
    users: usize,
    pause: Duration,
    ttl: Option<Duration>,
    is_over: Arc<AtomicBool>,
) -> Pushed {
    let mut pushed = Pushed { promised: vec![Vec::new(); users], ..Pushed::default() };
    let mut interval = tokio::time::interval(pause);
    for number in 1.. {
        // The last round comes as fast as it is answered.
        let is_last = is_over.load(Ordering::Relaxed);
        for to in (service..users).step_by(SERVICES) {
            if !is_over.load(Ordering::Relaxed) {
                interval.tick().await;
            }
            let request = PushRequest {
                ttl: ttl.map(|ttl| prost_types::Duration { seconds: ttl.as_secs() as i64, nanos: 0 }),
                ..push_request(&user(to), EVENT, &number.to_string())
            };
            let calls = gateways.iter_mut().map(|gateway| {
                let mut request = tonic::Request::new(request.clone());
                request.set_timeout(PATIENCE);
                gateway.push(request)
            });
            let (mut taken, mut errors) = (false, 0);
            for answer in join_all(calls).await {
                match answer.map(tonic::Response::into_inner) {
                    Ok(outcome) => taken |= outcome.accepted + outcome.held > 0,
                    Err(_) => errors += 1,
                }
            }
            pushed.pushes += 1;
            pushed.errors += errors;
            if taken {
                pushed.promised[to].push(number);
            } else {
                pushed.refused += u64::from(errors == 0);
            }
        }
        if is_last {
            break;
        }
    }
    pushed
}
