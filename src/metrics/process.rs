//! The `process_` metrics, with the names that all Prometheus client libraries use. They exist only on Linux.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
#[cfg(target_os = "linux")]
use prometheus_client::{
    encoding::EncodeMetric,
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Reads the metrics at each scrape.
#[derive(Debug)]
pub(super) struct Process;

#[cfg(not(target_os = "linux"))]
impl Collector for Process {
    fn encode(&self, _encoder: DescriptorEncoder<'_>) -> fmt::Result {
        Ok(())
    }
}

#[cfg(target_os = "linux")]
impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // If /proc cannot be read, there are no values to report.
        let Ok(read) = Read::now() else { return Ok(()) };
        let cpu = ConstCounter::new(read.cpu_seconds);
        let help = "User and system CPU time in seconds";
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?)?;
        for (name, help, value) in [
            ("process_open_fds", "Open file descriptors", read.open_files),
            ("process_max_fds", "The limit of open file descriptors", read.files_max),
            ("process_virtual_memory_bytes", "Bytes of virtual memory", read.virtual_bytes),
            ("process_resident_memory_bytes", "Bytes of resident memory", read.resident_bytes),
            ("process_start_time_seconds", "When the process started, in seconds since 1970", read.started_at),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
struct Read {
    cpu_seconds: f64,
    open_files: f64,
    files_max: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
    started_at: f64,
}

#[cfg(target_os = "linux")]
impl Read {
    fn now() -> procfs::ProcResult<Self> {
        use procfs::process::{LimitValue, Process};

        let process = Process::myself()?;
        let stat = process.stat()?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Ok(Self {
            cpu_seconds: seconds(stat.utime + stat.stime),
            open_files: process.fd_count()? as f64,
            files_max: match process.limits()?.max_open_files.soft_limit {
                LimitValue::Value(files) => files as f64,
                LimitValue::Unlimited => f64::INFINITY,
            },
            virtual_bytes: stat.vsize as f64,
            resident_bytes: (stat.rss * procfs::page_size()) as f64,
            started_at: procfs::boot_time_secs()? as f64 + seconds(stat.starttime),
        })
    }
}
