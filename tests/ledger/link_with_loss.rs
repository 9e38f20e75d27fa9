//! The same ledger over a link that loses and delays packets, in its own network namespace.
//!
//! The test starts itself again inside that namespace. `PUSHGATE_LEDGER_LINK` then holds the name of the link's device.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::reflector::{FAR, Reflector};
use crate::{ONE_AT_A_TIME, at_every_level, seed};

/// Fewer pushes than usual, because every lost packet causes a wait.
const PUSHES: &str = "8000";

/// Sets up the link and then runs the test. If the kernel has netem, the link is the loopback, with packets of a common
/// size, because socket buffers depend on it. Otherwise the link is a TUN device, with the reflector at its far end and
/// all of 10.0.1.0/24 at its near end. The queue of the device is long enough that packets are lost only where the dice
/// say so.
const SET_UP: &str = r#"
if ip link set lo up mtu 1500 && tc qdisc add dev lo root netem delay 5ms 2ms loss 1%; then
    export PUSHGATE_LEDGER_LINK=lo
else
    export PUSHGATE_LEDGER_LINK=lossy
    ip tuntap add dev lossy mode tun && ip link set lossy up mtu 1500 txqueuelen 10000 &&
        ip address add 10.0.1.1/16 dev lossy && ip route add local 10.0.1.0/24 dev lo || exit 1
fi
exec "$@""#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute, and needs unshare, ip, and netem or a TUN device"]
async fn every_push_is_accounted_for_over_a_link_that_loses_and_delays() {
    let _alone = ONE_AT_A_TIME.lock().await;
    match std::env::var("PUSHGATE_LEDGER_LINK") {
        Err(_) => in_a_network_of_its_own().await,
        Ok(link) if link == "lo" => over_netem().await,
        Ok(link) => over_a_reflector(&link).await,
    }
}

async fn over_netem() {
    at_every_level(seed(), None).await;
    let counted = Command::new("tc").args(["-s", "qdisc", "show", "dev", "lo"]).output().unwrap();
    let counted = String::from_utf8_lossy(&counted.stdout);
    println!("{counted}");
    assert!(counted.contains("(dropped ") && !counted.contains("(dropped 0,"), "nothing was lost");
}

async fn over_a_reflector(device: &str) {
    let seed = seed();
    let reflector = Reflector::of(device, seed);
    at_every_level(seed, Some(FAR)).await;
    let packets = reflector.end();
    println!("link: {packets}");
    assert!(packets.passed > 0 && packets.lost > 0, "a link without loss shows nothing");
}

async fn in_a_network_of_its_own() {
    let worker = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "sh", "-c", SET_UP, "sh"]).arg(worker);
    command.args(["every_push_is_accounted_for_over_a_link_that_loses_and_delays", "--ignored", "--nocapture"]);
    command.env("PUSHGATE_LEDGER_SEED", seed().to_string());
    if std::env::var_os("PUSHGATE_LEDGER_PUSHES").is_none() {
        command.env("PUSHGATE_LEDGER_PUSHES", PUSHES);
    }
    let ran = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let ran = tokio::task::spawn_blocking(|| ran?.wait_with_output()).await.unwrap();
    let output = match ran {
        Ok(output) => output,
        Err(error) => return skipped(&format!("unshare: {error}")),
    };
    let (told, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !told.contains("running 1 test") {
        return skipped(&format!("{}: {}", output.status, wrong.trim()));
    }
    println!("{told}");
    assert!(output.status.success() && told.contains("1 passed"), "{told}\n{wrong}");
}

/// Prints the reason for skipping, bypassing the capture of test output.
fn skipped(why: &str) {
    let _unread = writeln!(std::io::stderr(), "SKIPPED: no link that loses and delays: {why}");
}
