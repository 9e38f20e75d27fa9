//! Batches on the wire: one of too many pushes is refused before any of them is decoded, as an empty push is two bytes
//! there and hundreds in memory.

use bytes::{Buf, Bytes};
use prost::DecodeError;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder};
use tonic::server::Grpc;
use tonic::{Request, Status};
use tonic_prost::ProstEncoder;
use tower::service_fn;

use crate::doors::api::check_count;
use crate::doors::{Body, RequestBody};
use crate::gateway::Gateway;
use crate::proto::push_service_server::PushService;
use crate::proto::{PushBatchRequest, PushBatchResponse};

use super::PushDoor;

/// The field `pushes`.
const PUSHES: u32 = 1;

impl PushDoor {
    /// Answers a call of PushBatch, as the generated server would that knows no limit for a batch.
    pub(crate) async fn batch(gateway: Gateway, request: http::Request<RequestBody>) -> http::Response<Body> {
        let config = &gateway.rooms().config;
        let mut grpc = Grpc::new(BatchCodec { pushes_max: config.batch_pushes_max })
            .max_decoding_message_size(config.request_bytes_max)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        let door = Self { gateway };
        let push_batch = service_fn(move |batch: Request<PushBatchRequest>| {
            let door = door.clone();
            async move { door.push_batch(batch).await }
        });
        grpc.unary(push_batch, request).await
    }
}

struct BatchCodec {
    pushes_max: usize,
}

impl Codec for BatchCodec {
    type Encode = PushBatchResponse;
    type Decode = PushBatchRequest;
    type Encoder = ProstEncoder<PushBatchResponse>;
    type Decoder = BatchDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BatchDecoder { pushes_max: self.pushes_max }
    }
}

struct BatchDecoder {
    pushes_max: usize,
}

impl Decoder for BatchDecoder {
    type Item = PushBatchRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<PushBatchRequest>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        // In tonic's own words.
        let malformed = |error: DecodeError| Status::internal(error.to_string());
        let count = count(bytes.clone()).map_err(malformed)?;
        check_count(count, self.pushes_max)?;
        PushBatchRequest::decode(bytes).map(Some).map_err(malformed)
    }
}

/// How many pushes an encoded batch has.
fn count(mut bytes: Bytes) -> Result<usize, DecodeError> {
    let mut count = 0;
    while bytes.has_remaining() {
        let (field, wire_type) = decode_key(&mut bytes)?;
        count += usize::from(field == PUSHES && wire_type == WireType::LengthDelimited);
        skip_field(wire_type, field, &mut bytes, DecodeContext::default())?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::proto::PushRequest;

    use super::*;

    proptest! {
        #[test]
        fn the_pushes_of_a_batch_are_counted_as_they_are_decoded(messages in proptest::collection::vec(".{0,200}", 0..20)) {
            let pushes = messages.into_iter().map(|user_id| PushRequest { user_id, ..PushRequest::default() }).collect();
            let batch = PushBatchRequest { pushes };
            prop_assert_eq!(count(batch.encode_to_vec().into()), Ok(batch.pushes.len()));
        }

        #[test]
        fn whatever_is_decoded_was_counted(bytes in proptest::collection::vec(prop_oneof![0..12u8, any::<u8>()], 0..40)) {
            let bytes = Bytes::from(bytes);
            if let Ok(batch) = PushBatchRequest::decode(bytes.clone()) {
                prop_assert_eq!(count(bytes), Ok(batch.pushes.len()));
            }
        }
    }

    #[test]
    fn what_this_gateway_does_not_know_is_no_push() {
        let unknown = [0x12, 1, b'x', 0x18, 5];
        assert_eq!(count([&unknown[..], &[0x0a, 0], &unknown, &[0x0a, 0]].concat().into()), Ok(2));
    }
}
