//! Checks that imports point down the list of rooms, and that no two files need each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Which rooms a room may know beside the leaves.
const ARROWS: [(&str, &[&str]); 18] = [
    ("auth", &[]),
    ("delivery", &[]),
    ("handle", &[]),
    ("dialect", &["auth", "delivery"]),
    ("journal", &["delivery"]),
    ("mailbox", &["delivery", "dialect", "handle", "journal"]),
    ("flusher", &["mailbox"]),
    ("binder", &["handle", "mailbox"]),
    ("registry", &["handle", "mailbox"]),
    ("replays", &["delivery"]),
    ("sessions", &["binder", "delivery", "handle", "journal", "mailbox"]),
    ("connection", &["auth", "binder", "dialect", "handle", "mailbox", "registry", "sessions"]),
    ("gateway", &["auth", "binder", "delivery", "flusher", "mailbox", "registry", "replays", "sessions"]),
    ("doors/api", &["auth", "doors", "gateway"]),
    ("doors/json", &["auth", "doors", "doors/api", "gateway"]),
    ("doors/grpc", &["auth", "doors", "doors/api", "gateway"]),
    ("doors/admin", &["auth", "doors", "doors/api", "gateway"]),
    ("doors/websocket", &["auth", "connection", "dialect", "doors", "registry"]),
];
/// Free to all. They know only each other.
const LEAVES: [&str; 14] = [
    "allowance",
    "close",
    "config",
    "legacy",
    "message",
    "metrics",
    "outcome",
    "proto",
    "push_request",
    "revocations",
    "seldom",
    "shares",
    "subscriber",
    "sync",
];
/// Know all rooms.
const ROOFS: [&str; 5] = ["lib", "server", "main", "cli", "inside"];
/// Files of tests alone.
const TESTS: [&str; 4] = ["model", "models", "rooms", "tests"];
/// A door gets these from the gateway, and no other room: the rest is the gateway's to call.
const HANDED_OUT: [&str; 5] = ["config", "metrics", "names", "push_authorizer", "pushes"];

/// A file of `src` by its modules: `["mailbox", "keep", "ranking"]`.
type Name = Vec<String>;

/// Who needs whom, of those beside each other in one folder.
type Graph = BTreeMap<(Name, String), BTreeSet<(Name, String)>>;

struct File {
    name: Name,
    code: String,
}

fn files() -> Vec<File> {
    fn walk(folder: &Path, name: &[String], files: &mut Vec<File>) {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path: PathBuf = entry.expect("a readable entry").path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
            let name: Name = name.iter().cloned().chain([stem]).collect();
            if path.is_dir() {
                walk(&path, &name, files);
            } else if !TESTS.contains(&name[name.len() - 1].as_str())
                && path.extension().is_some_and(|extension| extension == "rs")
            {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                files.push(File { name, code: lines.collect::<Vec<_>>().join("\n") });
            }
        }
    }
    let mut files = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut files);
    files
}

/// The paths that start where `text` does, with groups taken apart: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(text: &str) -> Vec<Name> {
    fn take(text: &mut &str, before: &[String], found: &mut Vec<Name>) {
        let mut path = before.to_vec();
        loop {
            *text = text.trim_start();
            if let Some(group) = text.strip_prefix('{') {
                *text = group;
                while !text.trim_start().starts_with('}') && !text.is_empty() {
                    take(text, &path, found);
                    *text = text.trim_start().trim_start_matches(',').trim_start();
                }
                *text = text.trim_start().trim_start_matches('}');
                return;
            }
            let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
            if end == 0 {
                // Something else than a path, such as `*`.
                *text = text.get(1..).unwrap_or_default();
                break;
            }
            path.push(text[..end].to_owned());
            *text = &text[end..];
            match text.strip_prefix("::") {
                Some(rest) => *text = rest,
                None => break,
            }
        }
        if let Some(rest) = text.strip_prefix(" as ") {
            *text = rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
        }
        found.push(path);
    }
    let (mut text, mut found) = (text, Vec::new());
    take(&mut text, &[], &mut found);
    found
}

/// Which files a file names, by `crate::`, `super::`, or as a module of its own.
fn named(file: &File, all: &BTreeSet<Name>) -> BTreeSet<Name> {
    let starts = |word: &str| -> Vec<usize> {
        let found = file.code.match_indices(word).map(|(at, _)| at);
        found.filter(|at| !file.code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')).collect()
    };
    let mut named = BTreeSet::new();
    for at in starts("crate::").into_iter().chain(starts("super::")) {
        for path in paths(&file.code[at..]) {
            let mut target = if path[0] == "crate" { Vec::new() } else { file.name.clone() };
            for part in &path {
                match part.as_str() {
                    "crate" | "self" => {}
                    "super" => drop(target.pop()),
                    part => target.push(part.to_owned()),
                }
            }
            // What stands behind the file are its items.
            while !target.is_empty() && !all.contains(&target) {
                target.pop();
            }
            named.insert(target);
        }
    }
    named.retain(|target| !target.is_empty() && *target != file.name);
    named
}

fn graph() -> BTreeMap<Name, BTreeSet<Name>> {
    let files = files();
    let all: BTreeSet<Name> = files.iter().map(|file| file.name.clone()).chain([vec!["proto".to_owned()]]).collect();
    files.iter().map(|file| (file.name.clone(), named(file, &all))).collect()
}

/// The room of a file: its first folder, but each door is a room of its own.
fn room(name: &Name) -> String {
    let parts = if name[0] == "doors" { 2 } else { 1 };
    name[..parts.min(name.len())].join("/")
}

#[test]
fn imports_point_down() {
    let allowed: BTreeMap<_, _> = ARROWS.into_iter().collect();
    let mut wrong = Vec::new();
    for (name, targets) in graph() {
        let own = room(&name);
        if ROOFS.contains(&own.as_str()) {
            continue;
        }
        let may = allowed.get(own.as_str()).copied();
        let is_known = may.is_some() || LEAVES.contains(&own.as_str()) || own == "doors";
        assert!(is_known, "{own} is not on the list of rooms");
        for target in targets.iter().map(room) {
            let is_leaf = LEAVES.contains(&target.as_str());
            if target != own && !is_leaf && !may.unwrap_or_default().contains(&target.as_str()) {
                wrong.push(format!("{} must not know {target}", name.join("/")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_two_rooms_and_no_two_files_of_a_room_need_each_other() {
    let graph = graph();
    // Files beside each other, each with what is below it. What is in the file above is shared by those below.
    let mut beside = Graph::new();
    for (name, targets) in &graph {
        for target in targets {
            let common = name.iter().zip(target).take_while(|(a, b)| a == b).count();
            if common < name.len() && common < target.len() {
                let place = |of: &Name| (of[..common].to_vec(), of[common].clone());
                beside.entry(place(name)).or_default().insert(place(target));
            }
        }
    }
    fn reaches(from: &(Name, String), to: &(Name, String), graph: &Graph, seen: &mut BTreeSet<(Name, String)>) -> bool {
        let mut next = graph.get(from).into_iter().flatten();
        next.any(|next| next == to || (seen.insert(next.clone()) && reaches(next, to, graph, seen)))
    }
    let roofs = |name: &str| ROOFS.contains(&name);
    let in_circles: Vec<_> = beside
        .keys()
        .filter(|(_, name)| !roofs(name))
        .filter(|name| reaches(name, name, &beside, &mut BTreeSet::new()))
        .map(|(above, name)| format!("{}/{name}", above.join("/")))
        .collect();
    assert!(in_circles.is_empty(), "in a circle: {in_circles:#?}");
}

#[test]
fn a_door_calls_the_gateway_and_not_the_rooms_behind_it() {
    let mut wrong = Vec::new();
    for file in files().iter().filter(|file| file.name[0] == "doors") {
        for (at, _) in file.code.match_indices("rooms().") {
            let end = file.code[at + 8..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(0);
            let field = &file.code[at + 8..at + 8 + end];
            if !HANDED_OUT.contains(&field) {
                wrong.push(format!("{} takes {field}", file.name.join("/")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_group_of_imports_is_taken_apart() {
    let joined: Vec<_> = paths("crate::a::{self, b::{c, D as E}, f};").iter().map(|path| path.join("::")).collect();
    assert_eq!(joined, ["crate::a::self", "crate::a::b::c", "crate::a::b::D", "crate::a::f"]);
}
