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
}

const fn value(name: &'static str, pointer: &'static str) -> Value {
    Value { name, pointer, of: |value| value }
}

const BYTES: Value = value("bytes of memory a connection", "/server/resident_bytes_per_connection");
const PER_PUSH: Value = value("us of CPU a push", "/server/cpu_us_per_push");
const PER_DELIVERY: Value = value("us of CPU a delivery", "/server/cpu_us_per_delivery");

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
        &[BYTES],
    ),
    alone(
        "row2",
        "idle sessions, from 2,000 to 15,000",
        "--hold --session --to many --connections 15000 --memory-from 2000",
        0.1,
        &[BYTES],
    ),
    alone(
        "row3",
        "10,000 idle connections, a ping every 25 s",
        "--hold --to many --connections 10000",
        // Long enough for two pings on each connection, whenever they start.
        50.0,
        &[value("us of CPU a second and connection", "/server/idle_cpu_us_per_connection_second")],
    ),
    beside_floor(
        "row4",
        "one push to 1,000 sockets, 60 a second",
        "--warm-up 300ms --connections 1000 --rate 60",
        2.0,
        &[PER_DELIVERY],
    ),
    beside_floor(
        "row4",
        "one push to 10,000 sockets, 6 a second",
        "--warm-up 300ms --connections 10000 --rate 6",
        2.0,
        &[PER_DELIVERY],
    ),
    beside_floor(
        "row5",
        "pushes to 1,000 sockets, back to back",
        "--warm-up 300ms --connections 1000",
        2.0,
        &[PER_DELIVERY, value("us from push to receipt, p99", "/push_to_receipt_us/p99")],
    ),
    beside_floor(
        "row6",
        "JSON to one of 10,000 users, 16 callers",
        "--warm-up 300ms --connections 10000 --to many --order random --callers 16",
        2.0,
        &[PER_PUSH],
    ),
    Row {
        name: "row7",
        title: "unary gRPC to one of 10,000 users, 16 callers, beside tonic alone with one floor delivery",
        arguments: UNARY,
        seconds: 2.0,
        values: &[PER_PUSH],
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
        }],
    ),
    beside_floor(
        "row9",
        "2,000 pushes a second to 1,000 users",
        "--warm-up 300ms --connections 1000 --to many --rate 2000",
        2.0,
        &[value("us from push to receipt, p50", "/push_to_receipt_us/p50"), PER_PUSH],
    ),
    beside_floor(
        "row10",
        "connections that come and bind",
        "--hold --to many --connections 10000",
        0.1,
        &[value("us of CPU a connection", "/server/cpu_us_per_connection_opened")],
    ),
    Row {
        name: "row11",
        title: "a tenth of 1,000 clients stop reading, beside all reading",
        arguments: "--warm-up 300ms --connections 1000 --stalled 10 --bytes 512",
        seconds: 2.0,
        values: &[value("pushes a second", "/pushes_per_second")],
        other: Some((Server::Gateway, "--warm-up 300ms --connections 1000 --bytes 512")),
    },
];
