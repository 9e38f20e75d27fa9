//! The examples of the README, so that they are programs that run.

use crate::tools::root;

const README: &str = "README.md";

/// Where the examples say the gateway is.
pub(crate) const ADDRESS: &str = "127.0.0.1:12345";

/// The code block that follows the line `<!-- test: NAME -->`.
#[track_caller]
pub(crate) fn example(name: &str) -> String {
    let path = root().join(README);
    let readme = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mark = format!("<!-- test: {name} -->");
    let mut lines = readme.lines().skip_while(|line| line.trim() != mark).skip(1).skip_while(|line| line.is_empty());
    let opening = lines.next().unwrap_or_else(|| panic!("there is no {mark} in {README}"));
    assert!(opening.starts_with("```"), "no code block follows {mark} in {README}");
    lines.take_while(|line| !line.starts_with("```")).map(|line| format!("{line}\n")).collect()
}

/// The same for a program that reaches a gateway, which is at another address here.
#[track_caller]
pub(crate) fn program(name: &str, gateway: std::net::SocketAddr) -> String {
    let example = example(name);
    assert!(example.contains(ADDRESS), "the example {name} does not go to {ADDRESS}");
    example.replace(ADDRESS, &gateway.to_string())
}
