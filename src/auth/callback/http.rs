//! Asks about a token by HTTP: a POST of JSON, answered with JSON or with a status that refuses.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::RootCertStore;

use super::super::https::{self, HttpClient};
use super::super::{Identity, ReloadError};
use super::question::{Answer, Grant, NoAnswer, Question, Refused, patterns, user};
use super::{ANSWER_BYTES_MAX, Service};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A service with an address to POST to.
pub(super) struct Http {
    uri: Uri,
    client: HttpClient<Full<Bytes>>,
}

#[derive(Serialize)]
struct Asked<'a> {
    token: &'a str,
    event: &'a str,
    peer: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, Vec<&'a str>>,
}

#[derive(Deserialize)]
struct Granted {
    user_id: String,
    expires_at: Option<f64>,
    token_id: Option<String>,
    issued_at: Option<f64>,
    events: Option<Vec<String>>,
}

impl Http {
    pub(super) fn new(uri: Uri, roots: RootCertStore, idle_max: usize) -> Result<Self, ReloadError> {
        Ok(Self { uri, client: https::client(roots, idle_max)? })
    }

    fn request(&self, question: &Question) -> Request<Full<Bytes>> {
        let mut headers = BTreeMap::<_, Vec<_>>::new();
        for (name, value) in question.headers.iter() {
            headers.entry(name).or_default().push(value);
        }
        let (token, event, peer) = (question.token.expose(), question.event.as_str(), question.peer.to_string());
        let body = serde_json::to_vec(&Asked { token, event, peer, headers }).expect("texts and lists of them");
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(ACCEPT, JSON);
        headers.insert(USER_AGENT, HeaderValue::from_static(https::USER_AGENT));
        request
    }
}

#[async_trait]
impl Service for Http {
    async fn ask(&self, question: &Question) -> Result<Answer, NoAnswer> {
        let response = self.client.request(self.request(question)).await.map_err(NoAnswer::Unreachable)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => return Ok(Err(Refused::Token)),
            StatusCode::FORBIDDEN => return Ok(Err(Refused::Event)),
            status if status.is_redirection() => return Err(NoAnswer::Redirected(status)),
            status => return Err(NoAnswer::Status(status)),
        }
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        read(&body.map_err(NoAnswer::Unreadable)?.to_bytes()).map(Ok)
    }
}

fn read(body: &[u8]) -> Result<Grant, NoAnswer> {
    const EXPECTED: &str = "it is not a JSON object with a text user_id and perhaps numbers expires_at and issued_at, a text token_id and a \
         list of texts events";
    let Granted { user_id, expires_at, token_id, issued_at, events } =
        serde_json::from_slice(body).map_err(|_| NoAnswer::Malformed(EXPECTED))?;
    let (expires_at, issued_at) = (expires_at.map(time).transpose()?, issued_at.map(time).transpose()?);
    Ok(Grant {
        identity: Identity { expires_at, token_id, issued_at, ..user(user_id)? },
        events: events.as_deref().map(patterns),
    })
}

/// A time in seconds since 1970, before the year 10000: a later one is usually in milliseconds.
fn time(seconds: f64) -> Result<SystemTime, NoAnswer> {
    let since_1970 = Duration::try_from_secs_f64(seconds).ok().filter(|since| since.as_secs() < 253_402_300_800);
    let malformed = NoAnswer::Malformed("expires_at or issued_at is not a time in seconds since 1970");
    Ok(SystemTime::UNIX_EPOCH + since_1970.ok_or(malformed)?)
}
