//! A gRPC service of a conformance suite, behind the same stack as the push service. There is one for the process.

use std::convert::Infallible;
use std::sync::OnceLock;

use http::{Request, Response};
use http_body_util::Either;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::doors::{Body, RequestBody};

use super::Answer;

/// The service, whose paths begin with `/grpc.testing.`.
pub type Guest = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

static GUEST: OnceLock<Guest> = OnceLock::new();

/// Has all servers of this process serve it from now on. Only the first is taken.
pub fn invite(guest: Guest) {
    let _later = GUEST.set(guest);
}

pub(super) fn is_for_guest(path: &str) -> bool {
    path.starts_with("/grpc.testing.") && GUEST.get().is_some()
}

pub(super) fn call(request: Request<RequestBody>) -> Answer {
    let mut guest = GUEST.get().expect("asked about before").clone();
    guest.call(request.map(|body| match body {
        Either::Left(whole) => Body::new(whole),
        Either::Right(body) => body,
    }))
}
