//! The API's messages written in protobuf's JSON mapping, by their own descriptors.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};

use crate::proto;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(proto::DESCRIPTORS).expect("the descriptors were encoded by this build"));

pub(super) fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(&format!("pushgate.v1.{name}")).expect("a message of this API")
}

/// Writes a message, fields of value 0 too: an outcome that matched nobody should say so.
pub(super) fn write<M: Message>(message: &M, name: &str) -> Vec<u8> {
    let mut dynamic = DynamicMessage::new(descriptor(name));
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut json);
    let options = SerializeOptions::new().skip_default_fields(false);
    dynamic.transcode_from(message).expect("a message of this type");
    dynamic.serialize_with_options(&mut serializer, &options).expect("a message is always JSON");
    json
}
