//! The callers. Each pushes to its own users, so that it knows the order in which their messages were sent.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pushgate::proto::push_request::Payload;
use pushgate::proto::push_result::Result as ResultOf;
use pushgate::proto::push_service_client::PushServiceClient;
use pushgate::proto::{Level, Priority, PushRequest, PushStreamRequest, SlowReaderPolicy};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::answers::{Lane, Record};
use crate::body::Body;
use crate::dice::{Dice, Owner};
use crate::support::{GrpcCaller, push_request, soon};
use crate::world::{EVENTS, PUSHERS, USERS, World, user};

/// The maximum number of unary calls that one pusher has open in addition to its stream.
const CALLS_MAX: usize = 24;

/// The maximum number of pushes of one pusher without a last answer.
const OPEN_MAX: usize = 1200;

/// The maximum number of pushes between two pauses.
const BURST_MAX: u64 = 120;

pub(crate) struct Pusher {
    world: Arc<World>,
    number: usize,
    dice: Dice,
    /// The user that gets the whole burst. `None` if each message of the burst goes to a random user.
    favourite: Option<usize>,
    records: Vec<Record>,
}

impl Pusher {
    pub(crate) fn new(world: Arc<World>, number: usize) -> Self {
        let dice = Dice::of(world.seed, Owner::Pusher(number));
        Self { world, number, dice, favourite: None, records: Vec::new() }
    }

    /// Makes this pusher's share of the pushes and returns their records. `records[i]` belongs to push
    /// `number + i * PUSHERS`.
    pub(crate) async fn push_all(mut self, caller: GrpcCaller, channel: Channel) -> Vec<Record> {
        let share = (self.world.pushes + PUSHERS - 1 - self.number) / PUSHERS;
        let (messages, receiver) = mpsc::channel(16);
        let mut client = PushServiceClient::new(channel);
        let mut results = soon(client.push_stream(ReceiverStream::new(receiver))).await.unwrap().into_inner();
        let mut messages = Some(messages);
        let mut calls = FuturesUnordered::new();
        let (mut open, mut ended) = (0, false);
        let (mut burst, mut breath) = (self.dice.below(BURST_MAX), Instant::now());
        while !(ended && calls.is_empty()) {
            let is_free = open < OPEN_MAX && calls.len() < CALLS_MAX;
            let room = async {
                tokio::time::sleep_until(breath).await;
                match messages.clone() {
                    Some(messages) => messages.reserve_owned().await.unwrap(),
                    None => std::future::pending().await,
                }
            };
            let step = async {
                tokio::select! {
                    result = results.message(), if !ended => Step::Result(result),
                    Some(answer) = calls.next(), if !calls.is_empty() => Step::Answer(answer),
                    permit = room, if is_free && messages.is_some() => Step::Room(permit),
                }
            };
            match soon(step).await {
                Step::Result(result) => match result.unwrap() {
                    None => ended = true,
                    Some(response) => {
                        let record = &mut self.records[response.correlation_id.parse::<usize>().unwrap()];
                        match response.result.unwrap().result.unwrap() {
                            ResultOf::Outcome(outcome) => {
                                record.answer(&outcome, response.r#final, self.world.level);
                            }
                            ResultOf::Error(error) => record.refuse(&error),
                        }
                        open -= usize::from(response.r#final);
                    }
                },
                Step::Answer((place, answer)) => {
                    let answer: Result<_, Status> = answer;
                    let place: usize = place;
                    self.records[place].answer_call(answer, self.world.level);
                    open -= 1;
                }
                Step::Room(permit) => {
                    let place = self.records.len();
                    let (lane, push) = self.draw(place);
                    open += 1;
                    match lane {
                        Lane::Stream => {
                            permit.send(PushStreamRequest { correlation_id: place.to_string(), push: Some(push) });
                        }
                        Lane::Call => {
                            let mut caller = caller.clone();
                            calls.push(async move { (place, caller.try_push(push).await) });
                        }
                    }
                    if self.records.len() == share {
                        messages = None;
                    }
                    if burst == 0 {
                        burst = self.dice.below(BURST_MAX);
                        self.favourite = (!self.dice.one_in(3)).then(|| self.any_user());
                        breath = Instant::now() + Duration::from_millis(1 + self.dice.below(6));
                    }
                    burst = burst.saturating_sub(1);
                }
            }
        }
        assert_eq!((self.records.len(), open), (share, 0));
        self.records
    }

    /// A random user of this pusher.
    fn any_user(&mut self) -> usize {
        self.number + PUSHERS * self.dice.below((USERS / PUSHERS) as u64) as usize
    }

    fn draw(&mut self, place: usize) -> (Lane, PushRequest) {
        let to = self.favourite.unwrap_or_else(|| self.any_user());
        let dice = &mut self.dice;
        let event = EVENTS[usize::from(dice.one_in(4))];
        let ttl = match dice.below(16) {
            0 | 1 => Some(Duration::from_millis(dice.below(40))),
            2 => Some(Duration::from_secs(10)),
            _ => None,
        };
        let number = u32::try_from(self.number + place * PUSHERS).unwrap();
        // The large messages do not fit into the socket of a client with a small buffer.
        let padding = match dice.below(96) {
            0 => 60_000,
            1..4 => 3900,
            4..32 => dice.below(1600),
            _ => dice.below(120),
        };
        let text = Body { number, user: to, has_ttl: ttl.is_some() }.write(padding as usize);
        let lane = if dice.one_in(8) { Lane::Call } else { Lane::Stream };
        let priority = dice.pick(&[
            Priority::High,
            Priority::Bulk,
            Priority::Normal,
            Priority::Unspecified,
            Priority::Unspecified,
            Priority::Unspecified,
        ]);
        let policy = dice.pick(&[
            SlowReaderPolicy::Unspecified,
            SlowReaderPolicy::Disconnect,
            SlowReaderPolicy::DropNewest,
            SlowReaderPolicy::DropNewest,
            SlowReaderPolicy::DropOldest,
            SlowReaderPolicy::DropOldest,
            SlowReaderPolicy::Conflate,
        ]);
        let collapse_key = if dice.one_in(8) { format!("key {}", dice.below(3)) } else { String::new() };
        let mut push = PushRequest {
            wait_for: self.world.level.into(),
            per_connection: true,
            ttl: ttl.map(|ttl| ttl.try_into().unwrap()),
            priority: priority.into(),
            slow_reader_policy: policy.into(),
            collapse_key,
            ..push_request(&user(to), event, "")
        };
        push.payload = Some(match dice.one_in(8) {
            true => Payload::Binary(text.into_bytes().into()),
            false => Payload::Message(text),
        });
        // An unspecified priority counts as normal, also for the order.
        let priority = if priority == Priority::Unspecified { Priority::Normal } else { priority };
        self.records.push(Record::new(to, lane, priority.into(), ttl.is_some()));
        (lane, push)
    }
}

enum Step {
    Result(Result<Option<pushgate::proto::PushStreamResponse>, Status>),
    Answer((usize, Result<pushgate::proto::PushResponse, Status>)),
    Room(mpsc::OwnedPermit<PushStreamRequest>),
}

/// Pushes one last message to a user, after all queued messages, and waits until it is acknowledged.
pub(crate) async fn push_last(mut caller: GrpcCaller, to: usize, number: u32) -> Record {
    let text = Body { number, user: to, has_ttl: false }.write(0);
    let mut record = Record::new(to, Lane::Call, Priority::Bulk.into(), false);
    let push = PushRequest {
        wait_for: Level::Acked.into(),
        per_connection: true,
        priority: Priority::Bulk.into(),
        slow_reader_policy: SlowReaderPolicy::DropNewest.into(),
        ..push_request(&user(to), EVENTS[0], &text)
    };
    record.answer_call(caller.try_push(push).await, Level::Acked);
    record
}
