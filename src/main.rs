//! The `pushgate` command.

mod cli;

use std::process::ExitCode;

/// A quiet connection is a handful of small blocks, one of them aligned to 128 bytes by tokio. glibc's allocator wastes a
/// quarter of what they need.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
