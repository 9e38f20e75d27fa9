//! The API's messages in protobuf's JSON mapping, by their own descriptors.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::Deserialize;
use serde_json::Value;

use crate::legacy;
use crate::proto;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(proto::DESCRIPTORS).expect("the descriptors were encoded by this build"));

fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(&format!("pushgate.v1.{name}")).expect("a message of this API")
}

/// Reads a message. As in the legacy contract, unknown keys are skipped and what follows the JSON value is not looked at;
/// what a known key holds must be right.
pub(super) fn read<M: Message + Default>(json: &[u8], name: &str) -> Result<M, String> {
    let descriptor = descriptor(name);
    let text = legacy::text(json);
    let mut value = Value::deserialize(&mut serde_json::Deserializer::from_str(&text)).map_err(|e| e.to_string())?;
    if let Value::Object(fields) = &mut value {
        // By hand: told to skip unknown fields, prost-reflect skips unknown enum values too, and a level that is
        // misspelt would count as not given.
        fields.retain(|key, _| {
            descriptor.get_field_by_json_name(key).is_some() || descriptor.get_field_by_name(key).is_some()
        });
    }
    let message = DynamicMessage::deserialize(descriptor, value).map_err(|e| e.to_string())?;
    message.transcode_to().map_err(|e| e.to_string())
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
