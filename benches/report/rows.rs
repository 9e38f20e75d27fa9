//! The rows of the report. Each is a run of `pushgate bench`, given by its arguments.

/// The server that a row is measured on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Gateway,
    Floor,
    /// The one of `examples/floor_grpc.rs`, for gRPC.
    FloorGrpc,
}

pub(crate) struct Row {
    /// The name that selects the row on the command line.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// The arguments of `pushgate bench`.
    pub(crate) arguments: &'static str,
    /// The duration of the measurement.
    pub(crate) seconds: f64,
    pub(crate) values: &'static [Value],
    /// The server and the arguments of the run to compare with.
    pub(crate) other: Option<(Server, &'static str)>,
}

pub(crate) struct Value {
    pub(crate) name: &'static str,
    /// The JSON pointer of the value in the report of `pushgate bench`.
    pub(crate) pointer: &'static str,
    /// Converts the value for the table.
    pub(crate) of: fn(f64) -> f64,
    pub(crate) target: Target,
}

/// What a value should be.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// The ratio of the value to the other server's.
    RatioAtMost(f64),
    RatioAtLeast(f64),
}

impl Target {
    /// Whether a value meets it. Without the ratio, a target for the ratio is not met.
    pub(crate) fn is_met(self, value: Option<f64>, ratio: Option<f64>) -> bool {
        match self {
            Self::AtMost(most) => value.is_some_and(|value| value <= most),
            Self::AtLeast(least) => value.is_some_and(|value| value >= least),
            Self::RatioAtMost(most) => ratio.is_some_and(|ratio| ratio <= most),
            Self::RatioAtLeast(least) => ratio.is_some_and(|ratio| ratio >= least),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "at most {most}"),
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::RatioAtMost(most) => write!(f, "ratio at most {most}"),
            Self::RatioAtLeast(least) => write!(f, "ratio at least {least}"),
        }
    }
}

const fn value(name: &'static str, pointer: &'static str, target: Target) -> Value {
    Value { name, pointer, of: |value| value, target }
}

const fn bytes(most: f64) -> Value {
    value("bytes of memory a connection", "/server/resident_bytes_per_connection", Target::AtMost(most))
}

const fn per_push(most: f64) -> Value {
    value("us of CPU a push", "/server/cpu_us_per_push", Target::RatioAtMost(most))
}

const fn per_delivery(most: f64) -> Value {
    value("us of CPU a delivery", "/server/cpu_us_per_delivery", Target::RatioAtMost(most))
}

/// A row that is compared with the floor server, with the same arguments.
const fn beside_floor(
    name: &'static str,
    title: &'static str,
    arguments: &'static str,
    seconds: f64,
    values: &'static [Value],
) -> Row {
    Row { name, title, arguments, seconds, values, other: Some((Server::Floor, arguments)) }
}

const fn alone(
    name: &'static str,
    title: &'static str,
    arguments: &'static str,
    seconds: f64,
    values: &'static [Value],
) -> Row {
    Row { name, title, arguments, seconds, values, other: None }
}

const UNARY: &str = "--warm-up 300ms --connections 10000 --to many --order random --callers 16 --door grpc";

pub(crate) const ROWS: &[Row] = &[
    beside_floor(
        "row1",
        "idle legacy connections, from 2,000 to 15,000",
        "--hold --to many --connections 15000 --memory-from 2000",
        0.1,
        &[bytes(1500.0)],
    ),
    alone(
        "row2",
        "idle sessions, from 2,000 to 15,000",
        "--hold --session --to many --connections 15000 --memory-from 2000",
        0.1,
        &[bytes(2000.0)],
    ),
    alone(
        "row3",
        "10,000 idle connections, a ping every 25 s",
        "--hold --to many --connections 10000",
        // Long enough for two pings on each connection, whenever they start.
        50.0,
        &[value("us of CPU a second and connection", "/server/idle_cpu_us_per_connection_second", Target::AtMost(0.8))],
    ),
    beside_floor(
        "row4",
        "one push to 1,000 sockets, 60 a second",
        "--warm-up 300ms --connections 1000 --rate 60",
        2.0,
        &[per_delivery(1.08)],
    ),
    beside_floor(
        "row4",
        "one push to 10,000 sockets, 6 a second",
        "--warm-up 300ms --connections 10000 --rate 6",
        2.0,
        &[per_delivery(1.05)],
    ),
    beside_floor(
        "row5",
        "pushes to 1,000 sockets, back to back",
        "--warm-up 300ms --connections 1000",
        2.0,
        &[
            per_delivery(0.15),
            value("us from push to receipt, p99", "/push_to_receipt_us/p99", Target::RatioAtMost(1.5)),
        ],
    ),
    beside_floor(
        "row6",
        "JSON to one of 10,000 users, 16 callers",
        "--warm-up 300ms --connections 10000 --to many --order random --callers 16",
        2.0,
        &[per_push(1.15)],
    ),
    Row {
        name: "row7",
        title: "unary gRPC to one of 10,000 users, 16 callers, beside tonic alone with one floor delivery",
        arguments: UNARY,
        seconds: 2.0,
        values: &[per_push(1.1)],
        other: Some((Server::FloorGrpc, UNARY)),
    },
    alone(
        "row8",
        "PushStream of 32 bytes to one connection",
        "--warm-up 300ms --connections 1 --door stream",
        2.0,
        &[Value {
            name: "messages a second for each gateway core",
            pointer: "/server/cpu_us_per_push",
            of: |microseconds| 1e6 / microseconds,
            target: Target::AtLeast(300_000.0),
        }],
    ),
    beside_floor(
        "row9",
        "2,000 pushes a second to 1,000 users",
        "--warm-up 300ms --connections 1000 --to many --rate 2000",
        2.0,
        &[value("us from push to receipt, p50", "/push_to_receipt_us/p50", Target::RatioAtMost(1.3)), per_push(1.3)],
    ),
    beside_floor(
        "row10",
        "connections that come and bind",
        "--hold --to many --connections 10000",
        0.1,
        &[value("us of CPU a connection", "/server/cpu_us_per_connection_opened", Target::RatioAtMost(1.3))],
    ),
    Row {
        name: "row11",
        title: "a tenth of 1,000 clients stop reading, beside all reading",
        arguments: "--warm-up 300ms --connections 1000 --stalled 10 --bytes 512",
        seconds: 2.0,
        values: &[value("pushes a second", "/pushes_per_second", Target::RatioAtLeast(0.97))],
        other: Some((Server::Gateway, "--warm-up 300ms --connections 1000 --bytes 512")),
    },
];
