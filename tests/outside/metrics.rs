//! The metrics as Prometheus reads them.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::process::{GatewayProcess, PATIENCE, pushgate};
use crate::tools::{Project, run};
use crate::user::User;

/// What a scraper gets that asks for this.
#[track_caller]
fn scrape(gateway: &GatewayProcess, accept: &str) -> String {
    let mut stream = TcpStream::connect(gateway.control).expect("the gateway listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
    let request = format!("GET /metrics HTTP/1.1\r\nhost: x\r\naccept: {accept}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    body.to_owned()
}

#[test]
#[ignore = "needs promtool"]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let gateway = GatewayProcess::start::<&str>([]);
    let mut ann = User::ann(&gateway);
    let address = format!("http://{}", gateway.control);
    run(pushgate().args(["push", "ann", "mail", "hello", "--wait-for", "written", "--address", &address]));
    assert_eq!(ann.next(), "hello");
    let project = Project::new();
    project.write("metrics.txt", &scrape(&gateway, "text/plain;version=0.0.4"));
    project.shell("promtool check metrics < metrics.txt");
}
