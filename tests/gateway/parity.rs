//! The doors stay equal: the same pushes give the same counts and the same arrivals, whichever door they come by.

use pushgate::proto::push_result::Result as ResultOf;
use pushgate::proto::{PushBatchRequest, PushRequest};

use crate::support::{Client, TestGateway, push_request, soon};

const PUSHES: usize = 1000;

/// A thousand pushes to users with no, one and two connections, and to events that some of them have bound.
fn pushes() -> Vec<(&'static str, &'static str, String)> {
    (0..PUSHES)
        .map(|number| {
            // Co-prime strides visit every combination.
            let user = ["ann", "bob", "carol"][number % 3];
            let event = ["mail", "chat", "news", "none"][number % 4];
            (user, event, format!("{number} {}", "\u{fc}\"\\\n".repeat(number % 50)))
        })
        .collect()
}

fn request((user, event, message): &(&str, &str, String)) -> PushRequest {
    push_request(user, event, message)
}

async fn population(gateway: &TestGateway) -> Vec<Client> {
    let mut both = gateway.bind("ann", "mail").await;
    gateway.bind_also(&mut both, "ann", "chat").await;
    vec![both, gateway.bind("ann", "chat").await, gateway.bind("bob", "news").await]
}

/// Pushes through a door, then reads what arrived at each client up to an end mark.
async fn arrivals(gateway: &TestGateway, clients: &mut [Client]) -> Vec<Vec<String>> {
    for (user, event) in [("ann", "mail"), ("ann", "chat"), ("bob", "news")] {
        gateway.json().push(user, event, "end").await;
    }
    let mut all = Vec::new();
    for client in clients {
        let mut texts = Vec::new();
        loop {
            match client.next_text().await {
                text if text == "end" => break,
                text => texts.push(text),
            }
        }
        all.push(texts);
    }
    all
}

#[tokio::test]
async fn a_thousand_pushes_are_the_same_through_every_door() {
    let pushes = pushes();
    let mut results = Vec::new();
    for door in ["json", "push", "batch"] {
        let gateway = TestGateway::start().await;
        let mut clients = population(&gateway).await;
        let mut counts = Vec::new();
        match door {
            "json" => {
                let mut json = gateway.json();
                for (user, event, message) in &pushes {
                    counts.push(json.push(user, event, message).await);
                }
            }
            "push" => {
                let mut grpc = gateway.grpc().await;
                for push in &pushes {
                    let outcome = grpc.try_push(request(push)).await.unwrap();
                    assert_eq!((outcome.matched, outcome.dropped), (outcome.accepted, 0));
                    counts.push(outcome.accepted);
                }
            }
            _ => {
                let batch = PushBatchRequest { pushes: pushes.iter().map(request).collect() };
                let results = soon(gateway.grpc().await.client.push_batch(batch)).await.unwrap().into_inner().results;
                for result in results {
                    let Some(ResultOf::Outcome(outcome)) = result.result else { panic!("a valid push was refused") };
                    counts.push(outcome.accepted);
                }
            }
        }
        for (sample, expected) in [("matched", counts.iter().sum::<u64>()), ("accepted", counts.iter().sum())] {
            assert_eq!(gateway.metric(&format!("pushgate_push_{sample}_total")).await, expected, "{door}");
        }
        results.push((counts, arrivals(&gateway, &mut clients).await));
    }
    assert_eq!(results[0].0.len(), PUSHES);
    assert_eq!(results[0].0.iter().sum::<u64>(), results[0].1.iter().map(|texts| texts.len() as u64).sum::<u64>());
    assert!(results[0].1.iter().all(|texts| !texts.is_empty()));
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

#[tokio::test]
async fn pushes_through_different_doors_arrive_in_the_order_they_were_accepted() {
    let gateway = TestGateway::start().await;
    let mut phone = gateway.bind("ann", "mail").await;
    let (mut json, mut grpc) = (gateway.json(), gateway.grpc().await);
    for number in 0..100 {
        let message = number.to_string();
        match number % 3 {
            0 => assert_eq!(json.push("ann", "mail", &message).await, 1),
            1 => assert_eq!(grpc.push("ann", "mail", &message).await.accepted, 1),
            _ => {
                let push = pushgate::Push::new("ann", "mail", message).unwrap();
                assert_eq!(gateway.gateway.push(&push).await.unwrap().accepted, 1);
            }
        }
    }
    for number in 0..100 {
        assert_eq!(phone.next_text().await, number.to_string());
    }
}
