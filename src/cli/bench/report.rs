//! The results of a run, as a table for people or as one JSON object for programs.

use hdrhistogram::Histogram;
use serde::Serialize;

/// A histogram of up to one minute, in nanoseconds with three significant digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are in order")
}

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) url: String,
    pub(super) door: &'static str,
    pub(super) to: &'static str,
    pub(super) connections: usize,
    /// Connections that read.
    pub(super) reading: usize,
    /// Connections that ended before the run was over.
    pub(super) connections_ended: usize,
    pub(super) first_end: Option<String>,
    pub(super) message_bytes: usize,
    /// The requested pushes per second. `None` in a closed loop.
    pub(super) rate: Option<f64>,
    pub(super) interrupted: bool,
    /// The time from the first measured push to the last answer.
    pub(super) seconds: f64,
    pub(super) pushes: u64,
    pub(super) pushes_per_second: f64,
    pub(super) failures: u64,
    pub(super) first_failure: Option<String>,
    pub(super) deliveries: Deliveries,
    pub(super) push_call_us: Times,
    pub(super) push_to_receipt_us: Times,
    pub(super) server: Option<Server>,
}

#[derive(Serialize)]
pub(super) struct Deliveries {
    /// The deliveries that the successful pushes should cause.
    pub(super) expected: u64,
    /// The deliveries that the server reported as accepted.
    pub(super) accepted: u64,
    pub(super) received: u64,
    pub(super) lost: u64,
    /// The rate of received messages, from the first measured push to the last receipt.
    pub(super) per_second: f64,
}

/// Percentiles in microseconds. All are 0 if there are no values.
#[derive(Serialize)]
pub(super) struct Times {
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p999: f64,
    max: f64,
}

impl Times {
    pub(super) fn new(histogram: &Histogram<u64>) -> Self {
        let at = |percentile| histogram.value_at_percentile(percentile) as f64 / 1000.0;
        Self { p50: at(50.0), p90: at(90.0), p99: at(99.0), p999: at(99.9), max: histogram.max() as f64 / 1000.0 }
    }
}

#[derive(Serialize)]
pub(super) struct Server {
    pub(super) pid: i32,
    pub(super) cpu_us_per_push: Option<f64>,
    pub(super) cpu_us_per_delivery: Option<f64>,
    /// The CPU time to accept, upgrade and bind a connection.
    pub(super) cpu_us_per_connection_opened: f64,
    /// The CPU time per connection and second while nothing is pushed, with `--hold`.
    pub(super) idle_cpu_us_per_connection_second: Option<f64>,
    pub(super) resident_bytes: u64,
    pub(super) resident_bytes_per_connection: Option<f64>,
}

impl Report {
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers and text only")
    }

    pub(super) fn table(&self) -> String {
        let mut lines = vec![row("clients", &self.clients())];
        if self.pushes + self.failures > 0 {
            self.pushed(&mut lines);
        }
        if let Some(server) = &self.server {
            server.lines(&mut lines);
        }
        if self.interrupted {
            lines.push("interrupted: these are the results until then".to_owned());
        }
        lines.join("\n")
    }

    fn clients(&self) -> String {
        let mut text = format!("{} bound", self.connections);
        if self.reading < self.connections {
            text.push_str(&format!(", {} do not read", self.connections - self.reading));
        }
        if let Some(why) = &self.first_end {
            text.push_str(&format!(", {} ended, the first with: {why}", self.connections_ended));
        }
        text
    }

    fn pushed(&self, lines: &mut Vec<String>) {
        let Self { pushes, seconds, pushes_per_second, failures, deliveries, .. } = self;
        let Deliveries { expected, received, lost, per_second, .. } = deliveries;
        lines.push(row("pushes", &format!("{pushes} in {seconds:.2} s, {pushes_per_second:.0} a second")));
        if let Some(why) = &self.first_failure {
            lines.push(row("failures", &format!("{failures}, the first: {why}")));
        }
        lines.push(row(
            "deliveries",
            &format!("{received} of {expected} expected, {lost} lost, {per_second:.0} a second"),
        ));
        lines.push(String::new());
        lines.push(row(
            "microseconds",
            &["p50", "p90", "p99", "p99.9", "max"].map(|name| format!("{name:>10}")).concat(),
        ));
        for (name, times) in [("push call", &self.push_call_us), ("push to receipt", &self.push_to_receipt_us)] {
            let Times { p50, p90, p99, p999, max } = times;
            lines.push(row(name, &[p50, p90, p99, p999, max].map(|time| format!("{time:>10.0}")).concat()));
        }
    }
}

impl Server {
    fn lines(&self, lines: &mut Vec<String>) {
        lines.push(String::new());
        lines.push(row("server", &format!("process {}", self.pid)));
        let times = [
            ("CPU a push", self.cpu_us_per_push),
            ("CPU a delivery", self.cpu_us_per_delivery),
            ("CPU to accept, bind", Some(self.cpu_us_per_connection_opened)),
            ("idle CPU", self.idle_cpu_us_per_connection_second),
        ];
        for (name, time) in times {
            if let Some(time) = time {
                let unit = if name.starts_with("idle") { "us per second and connection" } else { "us" };
                lines.push(row(name, &format!("{time:.2} {unit}")));
            }
        }
        let mut memory = format!("{:.1} MiB resident", self.resident_bytes as f64 / (1 << 20) as f64);
        if let Some(bytes) = self.resident_bytes_per_connection {
            memory.push_str(&format!(", {bytes:.0} bytes a connection"));
        }
        lines.push(row("memory", &memory));
    }
}

fn row(name: &str, value: &str) -> String {
    format!("{name:<20} {value}")
}
