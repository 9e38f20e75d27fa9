//! Reads whole request bodies, whose bytes are counted to their caller as they come.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use crate::doors::Refusal;
use crate::shares::Share;

/// Reads a whole body, and takes for it as it comes.
pub(super) async fn read(mut body: Incoming, limit_bytes: usize, share: &mut Share) -> Result<Bytes, Refusal> {
    // Copied, so that a body in tiny pieces takes no more than its bytes.
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BrokenOff)?.into_data() else { continue };
        if data.len() > limit_bytes - whole.len() {
            return Err(Refusal::TooLarge { limit_bytes });
        }
        if whole.is_empty() && body.is_end_stream() {
            // It came in one piece, as most do: it is in memory already, and nobody waits for more of it.
            return Ok(data);
        }
        share.take(data.len()).map_err(|_| Refusal::TooManyBytes)?;
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
