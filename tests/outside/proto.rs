//! The proto files as buf sees them: in good style, and never changed so that an existing caller breaks.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::tools::{program, root, run, tool};

fn buf() -> Command {
    let mut buf = tool("node_modules/.bin/buf");
    buf.current_dir(root());
    buf
}

#[test]
#[ignore = "needs buf"]
fn the_proto_files_are_in_the_style_that_buf_asks_for() {
    run(buf().args(["lint", "proto"]));
}

#[test]
#[ignore = "needs buf and git"]
fn the_proto_files_break_no_caller_of_the_main_branch() {
    let before = tempfile::tempdir().unwrap();
    let main = match unpack_main(before.path()) {
        Ok(main) => main,
        Err(reason) => {
            // Past the test harness, which hides what a passing test prints.
            let _ = writeln!(std::io::stderr(), "buf breaking is skipped: {reason}");
            return;
        }
    };
    println!("compared with {main}");
    run(buf().args(["breaking", "proto", "--against"]).arg(before.path().join("proto")));
}

/// Writes the proto files of the main branch into a folder and returns the branch's name, or why there are none.
fn unpack_main(folder: &Path) -> Result<&'static str, &'static str> {
    // In a clone of a branch, main is only known as the remote's.
    let main = ["refs/remotes/origin/main", "refs/heads/main"]
        .into_iter()
        .find(|branch| git(&["rev-parse", "--quiet", "--verify", branch]).status().is_ok_and(|found| found.success()))
        .ok_or("no main branch is here to compare with")?;
    if !git(&["cat-file", "-e", &format!("{main}:proto")]).status().is_ok_and(|found| found.success()) {
        return Err("the main branch has no proto files");
    }
    let archive = folder.join("main.tar");
    run(git(&["archive", "--format=tar", "--output"]).arg(&archive).args([main, "proto"]));
    run(program("tar").arg("-xf").arg(&archive).arg("-C").arg(folder));
    Ok(main)
}

fn git(args: &[&str]) -> Command {
    let mut git = program("git");
    // A build machine may have checked the repository out as another user.
    git.current_dir(root()).args(["-c", "safe.directory=*"]).args(args);
    git.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    git
}
