//! What a connection costs where a million legacy connections are bound in one process, each for a user of its own.

use pushgate::inside::Inside;

use super::{Figure, config, figure, one_thread};

const CONNECTIONS: usize = 1_000_000;

pub(super) fn measure() -> Vec<Figure> {
    let runtime = one_thread();
    let inside = runtime.block_on(Inside::start(config())).unwrap();
    let open = |from: usize, to: usize| {
        runtime.block_on(async {
            for number in from..to {
                connect(&inside, number);
                // Their tasks run in between, so that what is on its way does not pile up.
                if number % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            while inside.bindings() < to {
                tokio::task::yield_now().await;
            }
        });
    };
    open(0, CONNECTIONS / 2);
    let resident_before = resident_bytes();
    let counted = allocation_counter::measure(|| open(CONNECTIONS / 2, CONNECTIONS));
    let each = |bytes: f64| bytes / (CONNECTIONS / 2) as f64;
    let heap = each(counted.bytes_current as f64);
    let mut figures = vec![
        figure("resident memory a connection", each(resident_bytes() - resident_before), "bytes"),
        figure("counted heap a connection", heap, "bytes"),
        figure("blocks of heap a connection", each(counted.count_current as f64), "blocks"),
    ];
    let sizes = Inside::sizes();
    let rest = heap - sizes.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>();
    figures.extend(sizes.into_iter().map(|(name, bytes)| figure(format!("  {name}"), bytes as f64, "bytes")));
    figures.push(figure("  the runtime's part of the task, registry, binder, names", rest, "bytes"));
    figures
}

/// Opens a connection that binds one event, for a user of its own.
pub(super) fn connect(inside: &Inside, number: usize) -> pushgate::inside::MemorySocket {
    let bind = format!(r#"{{"token":"user-{number}","event":"mail"}}"#);
    // A final text frame, masked with a zero key.
    let mut frame = vec![0x81, 0x80 | u8::try_from(bind.len()).unwrap(), 0, 0, 0, 0];
    frame.extend(bind.as_bytes());
    inside.connect(frame.into_boxed_slice()).unwrap()
}

fn resident_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux's /proc is needed");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0
}
