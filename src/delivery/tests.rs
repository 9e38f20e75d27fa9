use super::*;
use crate::message::Names;
use crate::outcome::Level;

#[test]
fn a_message_on_its_way_does_not_print_what_it_says() {
    let push = Push::new("ann", "mail", "secret").expect("valid");
    let delivery = Delivery::new(Names::new().message_id(), &push, SlowReaderPolicy::Disconnect, Instant::now());
    let ticket = Arc::new(delivery).ticket(0);
    let printed = format!("{ticket:?}");
    assert!(printed.contains("payload_bytes: 6") && !printed.contains("secret"), "{printed}");
}

#[tokio::test]
async fn whoever_waits_is_told_of_every_receiver_whatever_becomes_of_it() {
    let names = Names::new();
    let ids = [names.connection_id(), names.connection_id(), names.connection_id(), names.connection_id()];
    let push = Push::new("ann", "mail", "m").expect("valid").with_ttl(Duration::from_nanos(1));
    let delivery = Delivery::new(names.message_id(), &push, SlowReaderPolicy::Disconnect, Instant::now());
    let delivery = Arc::new(delivery.followed(ids.into_iter()));
    let [written, lost, expired, refused] = [0, 1, 2, 3].map(|place| delivery.ticket(place));
    let waiting = tokio::spawn({
        let receipt = delivery.receipt().expect("followed");
        async move { receipt.settled(Level::Written).await }
    });
    assert!(expired.is_expired());
    refused.refused(DropReason::QueueFull);
    written.written(Instant::now());
    expired.lost(DropReason::Expired);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished(), "one is still on its way");
    drop(lost);
    waiting.await.expect("no panic");
    let progress: Vec<_> =
        delivery.receipt().expect("followed").outcomes().into_iter().map(|outcome| outcome.progress).collect();
    assert!(matches!(progress[0], Progress::Written { .. }));
    let rest = [
        Progress::Lost(DropReason::Closed),
        Progress::Lost(DropReason::Expired),
        Progress::Dropped(DropReason::QueueFull),
    ];
    assert_eq!(progress[1..], rest);
}
