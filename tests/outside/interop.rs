//! The interoperability cases of gRPC: the client of grpc-go with the suite's own service, which stands behind the stack
//! of the push service.

use std::convert::Infallible;

use http::{HeaderMap, HeaderName, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Frame;
use pushgate::inside::{Guest, invite};
use pushgate::{Config, Server};
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::tools::{run, tool};

const INITIAL: HeaderName = HeaderName::from_static("x-grpc-test-echo-initial");
const TRAILING: HeaderName = HeaderName::from_static("x-grpc-test-echo-trailing-bin");

/// The cases that need neither compression of single messages nor credentials.
const CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
];

/// `grpc/testing/messages.proto`, as far as the cases need it.
#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct Payload {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    body: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EchoStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SimpleRequest {
    #[prost(int32, tag = "2")]
    response_size: i32,
    #[prost(message, optional, tag = "7")]
    response_status: Option<EchoStatus>,
}

/// The answer to one message, or one of the answers.
#[derive(Clone, PartialEq, prost::Message)]
struct PayloadResponse {
    #[prost(message, optional, tag = "1")]
    payload: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StreamingInputRequest {
    #[prost(message, optional, tag = "1")]
    payload: Option<Payload>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StreamingInputResponse {
    #[prost(int32, tag = "1")]
    aggregated_payload_size: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseParameters {
    #[prost(int32, tag = "1")]
    size: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StreamingOutputRequest {
    #[prost(message, repeated, tag = "2")]
    response_parameters: Vec<ResponseParameters>,
    #[prost(message, optional, tag = "7")]
    response_status: Option<EchoStatus>,
}

fn sized(size: i32) -> PayloadResponse {
    let body = vec![0; usize::try_from(size).expect("a size")];
    PayloadResponse { payload: Some(Payload { kind: 0, body }) }
}

/// The status that the client wants to get.
fn asked(status: Option<EchoStatus>) -> Result<(), Status> {
    match status {
        Some(EchoStatus { code, message }) if code != 0 => Err(Status::new(Code::from_i32(code), message)),
        _ => Ok(()),
    }
}

type Answers = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<PayloadResponse, Status>> + Send>>;

fn answers(request: StreamingOutputRequest) -> Vec<Result<PayloadResponse, Status>> {
    let sizes = request.response_parameters.iter().map(|parameters| Ok(sized(parameters.size)));
    sizes.chain(asked(request.response_status).err().map(Err)).collect()
}

/// `grpc.testing.TestService`.
async fn call(request: Request<Body>) -> Response<Body> {
    let method = request.uri().path().strip_prefix("/grpc.testing.TestService/").unwrap_or_default().to_owned();
    match method.as_str() {
        "EmptyCall" => {
            let answer = service_fn(|_: tonic::Request<Empty>| async { Ok(tonic::Response::new(Empty {})) });
            Grpc::new(ProstCodec::default()).unary(answer, request).await
        }
        "UnaryCall" => {
            let answer = service_fn(|request: tonic::Request<SimpleRequest>| async {
                let request = request.into_inner();
                asked(request.response_status)?;
                Ok(tonic::Response::new(sized(request.response_size)))
            });
            Grpc::new(ProstCodec::default()).unary(answer, request).await
        }
        "StreamingInputCall" => {
            let answer = service_fn(|request: tonic::Request<Streaming<StreamingInputRequest>>| async {
                let mut requests = request.into_inner();
                let mut size = 0;
                while let Some(request) = requests.message().await? {
                    size += request.payload.map_or(0, |payload| payload.body.len());
                }
                let aggregated_payload_size = i32::try_from(size).expect("a size");
                Ok(tonic::Response::new(StreamingInputResponse { aggregated_payload_size }))
            });
            Grpc::new(ProstCodec::default()).client_streaming(answer, request).await
        }
        "StreamingOutputCall" => {
            let answer = service_fn(|request: tonic::Request<StreamingOutputRequest>| async {
                let answers: Answers = Box::pin(tokio_stream::iter(answers(request.into_inner())));
                Ok(tonic::Response::new(answers))
            });
            Grpc::new(ProstCodec::default()).server_streaming(answer, request).await
        }
        "FullDuplexCall" => {
            let answer = service_fn(|request: tonic::Request<Streaming<StreamingOutputRequest>>| async {
                let requests = request.into_inner();
                let answers = futures_util::StreamExt::flat_map(requests, |request| {
                    tokio_stream::iter(request.map_or_else(|status| vec![Err(status)], answers))
                });
                Ok(tonic::Response::new(Box::pin(answers) as Answers))
            });
            Grpc::new(ProstCodec::default()).streaming(answer, request).await
        }
        _ => Status::unimplemented("").into_http(),
    }
}

/// Sends metadata back: some before the answer, some behind it.
fn with_metadata(asked: &HeaderMap, mut response: Response<Body>) -> Response<Body> {
    if let Some(initial) = asked.get(INITIAL) {
        response.headers_mut().insert(INITIAL, initial.clone());
    }
    let Some(trailing) = asked.get(TRAILING).cloned() else { return response };
    response.map(|body| {
        Body::new(body.map_frame(move |frame| match frame.into_trailers() {
            Ok(mut trailers) => {
                trailers.insert(TRAILING, trailing.clone());
                Frame::trailers(trailers)
            }
            Err(data) => data,
        }))
    })
}

#[test]
#[ignore = "needs the client of grpc-go"]
fn the_client_of_grpc_go_finds_every_interop_case_as_it_should_be() {
    let runtime = Runtime::new().expect("a runtime");
    invite(Guest::new(service_fn(|request: Request<Body>| async {
        let asked = request.headers().clone();
        Ok::<_, Infallible>(with_metadata(&asked, call(request).await))
    })));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
    let port = listener.local_addr().expect("an address").port().to_string();
    let server = Server::builder(Config::default()).listener(listener);
    let server = runtime.block_on(server.bind()).expect("a gateway");
    runtime.spawn(server.run(std::future::pending()));
    for case in CASES {
        println!("{case}");
        let mut client = tool("grpc/client");
        run(client.args(["--use_tls=false", "--server_host=127.0.0.1", "--server_port", &port, "--test_case", case]));
    }
}
