//! The same ledger over a link that loses and delays, in a network namespace of its own.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::{ONE_AT_A_TIME, seed};

/// Far fewer: every lost packet is a wait.
const PUSHES: &str = "4000";

/// A network of its own with such a link, and in it what is run. Packets have a usual size: the socket buffers follow it.
/// Without netem a narrow link delays what waits for it, and loses what it has no room for.
const SET_UP: &str = r#"
netem() {
    tc qdisc add dev lo root netem delay 5ms 2ms loss 1% && echo "link: 5 ms, one packet in a hundred lost"
}
narrow() {
    tc qdisc add dev lo root handle 1: htb default 1 &&
        tc class add dev lo parent 1: classid 1:1 htb rate 30mbit quantum 1514 &&
        tc qdisc add dev lo parent 1:1 pfifo limit 200 && echo "link: 30 Mbit/s, with room for 200 packets"
}
ip link set lo up mtu 1500 && { netem || narrow; } || exit 1
"$@"
ended=$?
tc -s qdisc show dev lo
exit $ended"#;

#[tokio::test]
#[ignore = "takes half a minute, and needs unshare, ip and tc"]
async fn every_push_is_accounted_for_over_a_link_that_loses_and_delays() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let worker = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "sh", "-c", SET_UP, "sh"]).arg(worker);
    command.args(["--exact", "every_push_at_every_level_is_accounted_for", "--ignored", "--nocapture"]);
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

/// Says why, past the capturing of what tests print.
fn skipped(why: &str) {
    let _unread = writeln!(std::io::stderr(), "SKIPPED: no link that loses and delays: {why}");
}
