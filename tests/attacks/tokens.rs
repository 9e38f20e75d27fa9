//! Tokens that are wrong, in a flood: each costs the gateway a check.

use jsonwebtoken::Algorithm;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::floods::{UPGRADE, bind};
use crate::support::signer::{Signer, claims};
use crate::{Setup, World, source};

/// Attackers that connect and show one of these, over and over.
async fn show(world: &World, attack: &str, tokens: &[String]) {
    let mut attackers = JoinSet::new();
    for (number, token) in tokens.iter().cycle().take(8).enumerate() {
        let (clients, first) = (world.clients.clone(), [UPGRADE, &bind(token)].concat());
        attackers.spawn(async move {
            loop {
                let mut stream = clients.open(source(number)).await;
                let _cut = stream.write_all(&first).await;
                let mut answers = Vec::new();
                let _ended = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answers).await;
                assert!(answers.windows(2).any(|code| code == 4401u16.to_be_bytes()), "{answers:?}");
            }
        });
    }
    world.honest_people_notice_nothing(attack).await;
    // None of them was let in.
    assert!(attackers.try_join_next().is_none());
}

async fn wrong_tokens(setup: Setup<'_>) {
    let (signer, stranger) = (Signer::new(Algorithm::RS256), Signer::new(Algorithm::RS256));
    let eve = claims(&json!({ "sub": "eve" }));
    // Signed by somebody else, so that the whole signature is checked.
    let forged =
        [stranger.token(&eve), stranger.by(Algorithm::PS512).token(&eve), stranger.by(Algorithm::RS384).token(&eve)];
    let expired = signer.token(&claims(&json!({ "sub": "eve", "exp": 1 })));
    let deep = format!("{}.{}.AAAA", "W1tb".repeat(2000), "W1tb".repeat(2000));
    let world = World::with(Setup { signer: Some(signer), ..setup }).await;
    show(&world, "forged JWTs", &forged).await;
    show(&world, "expired JWTs, and JSON bombs in JWTs", &[expired, deep]).await;
    world.nothing_was_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn wrong_tokens_without_end_take_nobodys_place() {
    wrong_tokens(Setup::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a while"]
async fn wrong_tokens_without_end_over_tls_take_nobodys_place() {
    wrong_tokens(Setup { tls: true, ..Setup::default() }).await;
}
