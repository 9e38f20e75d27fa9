//! Reads a message of the API from JSON as it stands there, each key by the message's descriptor; refuses what is unknown
//! at its key, so that it costs nothing.

use std::cell::RefCell;
use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::legacy;

use super::mapping::descriptor;

/// The keys that match in any letter case, so that a caller may ask for JSON with what it sends today.
const LEGACY_KEYS: [&str; 3] = ["userId", "event", "message"];

/// Characters of a caller's text that are repeated to it.
const REPEATED_MAX: usize = 100;

/// Reads a message whose lists have at most so many items. On an error, which field was wrong, empty when it was none,
/// and what was wrong with it.
pub(super) fn read<M: Message + Default>(json: &[u8], name: &str, items_max: usize) -> Result<M, (String, String)> {
    let text = legacy::text(json);
    let mut deserializer = serde_json::Deserializer::from_str(&text);
    let reading = Reading { path: RefCell::default(), items_max };
    let message = AnyOf { kind: Kind::Message(descriptor(name)), reading: &reading };
    let read = message.deserialize(&mut deserializer).and_then(|read| deserializer.end().map(|()| read));
    match read {
        Ok(Some(Value::Message(message))) => message.transcode_to().map_err(|e| (String::new(), e.to_string())),
        Ok(_) => Err((String::new(), "an object is expected".to_owned())),
        Err(error) => Err((reading.path.into_inner(), error.to_string())),
    }
}

/// What the parts of one reading share.
struct Reading {
    /// Where it is. After an error, where that was.
    path: RefCell<String>,
    items_max: usize,
}

impl Reading {
    /// Goes into a field or an item, and says where to return to.
    fn enter(&self, part: fmt::Arguments<'_>) -> usize {
        let mut path = self.path.borrow_mut();
        let outside = path.len();
        fmt::write(&mut *path, part).expect("a string takes all");
        outside
    }

    fn enter_field(&self, name: &str) -> usize {
        let dot = if self.path.borrow().is_empty() { "" } else { "." };
        self.enter(format_args!("{dot}{name}"))
    }

    fn leave(&self, outside: usize) {
        self.path.borrow_mut().truncate(outside);
    }
}

/// A value of one kind. `None` stands for null, which is as good as not given.
struct AnyOf<'a> {
    kind: Kind,
    reading: &'a Reading,
}

impl<'de> DeserializeSeed<'de> for AnyOf<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl AnyOf<'_> {
    fn is_duration(&self) -> bool {
        matches!(&self.kind, Kind::Message(message) if message.full_name() == "google.protobuf.Duration")
    }

    fn numbered<E: Error>(self, number: Option<i32>) -> Result<Option<Value>, E> {
        match (&self.kind, number) {
            (Kind::Enum(_), Some(number)) => Ok(Some(Value::EnumNumber(number))),
            _ => Err(E::custom(format_args!("{self} is expected"))),
        }
    }
}

/// What is expected, for a person.
impl fmt::Display for AnyOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            _ if self.is_duration() => f.write_str("a duration such as \"1.5s\""),
            Kind::String => f.write_str("a string"),
            Kind::Bytes => f.write_str("base64"),
            Kind::Bool => f.write_str("true or false"),
            Kind::Enum(values) => {
                let names = values.values().map(|value| value.name().to_owned());
                write!(f, "one of {}", names.collect::<Vec<_>>().join(", "))
            }
            Kind::Message(_) => f.write_str("an object"),
            // No message that is read here has one.
            kind => write!(f, "{kind:?}"),
        }
    }
}

impl<'de> Visitor<'de> for AnyOf<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Self::Value, E> {
        match self.kind {
            Kind::Bool => Ok(Some(Value::Bool(truth))),
            _ => Err(E::custom(format_args!("{self} is expected"))),
        }
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        self.numbered(i32::try_from(number).ok())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        self.numbered(i32::try_from(number).ok())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let value = match &self.kind {
            Kind::String => Some(Value::String(text.to_owned())),
            Kind::Bytes => base64(text).map(|bytes| Value::Bytes(bytes.into())),
            Kind::Enum(values) => values.get_value_by_name(text).map(|value| Value::EnumNumber(value.number())),
            Kind::Message(message) if self.is_duration() => duration(text).map(|duration| {
                let mut dynamic = DynamicMessage::new(message.clone());
                dynamic.set_field_by_name("seconds", Value::I64(duration.seconds));
                dynamic.set_field_by_name("nanos", Value::I32(duration.nanos));
                Value::Message(dynamic)
            }),
            _ => None,
        };
        value.map(Some).ok_or_else(|| E::custom(format_args!("{self} is expected")))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Self::Value, A::Error> {
        match &self.kind {
            Kind::Message(message) if !self.is_duration() => {
                fields(message, self.reading, object).map(|read| Some(Value::Message(read)))
            }
            _ => Err(A::Error::custom(format_args!("{self} is expected"))),
        }
    }
}

fn fields<'de, A: MapAccess<'de>>(
    message: &MessageDescriptor,
    reading: &Reading,
    mut object: A,
) -> Result<DynamicMessage, A::Error> {
    let mut read = DynamicMessage::new(message.clone());
    let mut seen = Vec::new();
    while let Some(field) = object.next_key_seed(KeyOf { message, reading })? {
        let outside = reading.enter_field(field.name());
        if seen.contains(&field.number()) {
            return Err(A::Error::custom("the key is given twice"));
        }
        seen.push(field.number());
        if let Some(value) = object.next_value_seed(ValueOf { field: &field, reading })? {
            let other = field.containing_oneof().and_then(|one| one.fields().find(|other| read.has_field(other)));
            if let Some(other) = other {
                return Err(A::Error::custom(format_args!(
                    "{} is given too, and only one of them may be",
                    other.name()
                )));
            }
            read.set_field(&field, value);
        }
        reading.leave(outside);
    }
    Ok(read)
}

/// A key, which is a field's name in JSON or in the proto file.
struct KeyOf<'a> {
    message: &'a MessageDescriptor,
    reading: &'a Reading,
}

impl<'de> DeserializeSeed<'de> for KeyOf<'_> {
    type Value = FieldDescriptor;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyOf<'_> {
    type Value = FieldDescriptor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        let named = |name| self.message.get_field_by_json_name(name).or_else(|| self.message.get_field_by_name(name));
        let legacy = || LEGACY_KEYS.into_iter().find(|name| legacy::same_letters(key, name)).and_then(named);
        named(key).or_else(legacy).ok_or_else(|| {
            let key: String = key.chars().take(REPEATED_MAX).collect();
            self.reading.enter_field(&key);
            E::custom("there is no such key")
        })
    }
}

/// What a field holds: one value, or a list of them.
struct ValueOf<'a> {
    field: &'a FieldDescriptor,
    reading: &'a Reading,
}

impl<'de> DeserializeSeed<'de> for ValueOf<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let kind = self.field.kind();
        if self.field.is_list() {
            deserializer.deserialize_any(ListOf { kind, reading: self.reading })
        } else {
            AnyOf { kind, reading: self.reading }.deserialize(deserializer)
        }
    }
}

struct ListOf<'a> {
    kind: Kind,
    reading: &'a Reading,
}

impl<'de> Visitor<'de> for ListOf<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        // By hand, so that the caller's text is not repeated.
        Err(E::custom("a list is expected"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let outside = self.reading.enter(format_args!("[{}]", items.len()));
            let item = AnyOf { kind: self.kind.clone(), reading: self.reading };
            let Some(item) = list.next_element_seed(item)? else {
                self.reading.leave(outside);
                return Ok(Some(Value::List(items)));
            };
            items.push(item.ok_or_else(|| A::Error::custom("null is no item of a list"))?);
            self.reading.leave(outside);
            if items.len() > self.reading.items_max {
                return Err(A::Error::custom(format_args!("the list has more than {} items", self.reading.items_max)));
            }
        }
    }
}

/// In either alphabet, with or without padding, as protobuf has it.
fn base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet = if text.contains(['-', '_']) { alphabet::URL_SAFE } else { alphabet::STANDARD };
    GeneralPurpose::new(&alphabet, config).decode(text).ok()
}

/// Seconds with at most nine digits behind the point, and an `s`. Whether it is in range is for the reader of the message.
fn duration(text: &str) -> Option<prost_types::Duration> {
    let text = text.strip_suffix('s')?;
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |text| (-1, text));
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number(seconds) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanos: i32 = format!("{fraction:0<9}").parse().ok()?;
    Some(prost_types::Duration { seconds: sign * seconds.parse::<i64>().ok()?, nanos: sign as i32 * nanos })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    fn push(json: &str) -> Result<proto::PushRequest, (String, String)> {
        read(json.as_bytes(), "PushRequest", 3)
    }

    #[test]
    fn every_field_is_read_as_it_is_written() {
        let whole = proto::PushRequest {
            user_id: "ann".to_owned(),
            event: "mail".to_owned(),
            payload: Some(proto::push_request::Payload::Binary(vec![0xfb, 0xff].into())),
            wait_for: proto::Level::Acked.into(),
            ttl: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
            connection_id: "c".to_owned(),
            exclude_connection_ids: vec!["d".to_owned(), "e".to_owned()],
            per_connection: true,
            priority: proto::Priority::High.into(),
            collapse_key: "k".to_owned(),
            slow_reader_policy: proto::SlowReaderPolicy::Conflate.into(),
            idempotency_key: "i".to_owned(),
        };
        let json = String::from_utf8(super::super::mapping::write(&whole, "PushRequest")).expect("JSON is text");
        assert_eq!(push(&json), Ok(whole.clone()), "{json}");
        let by_proto_names = json.replace("userId", "user_id").replace("waitFor", "wait_for");
        assert_eq!(push(&by_proto_names), Ok(whole));
    }

    #[test]
    fn a_duration_has_digits_and_an_s() {
        let of = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        for (text, expected) in [
            ("1s", of(1, 0)),
            ("1.5s", of(1, 500_000_000)),
            ("-0.5s", of(0, -500_000_000)),
            ("0.000000001s", of(0, 1)),
            ("315576000000.999999999s", of(315_576_000_000, 999_999_999)),
        ] {
            assert_eq!(duration(text), expected, "{text}");
        }
        for bad in ["", "s", "1", "1S", "1.s", ".5s", "1.0000000001s", "1e3s", "+1s", "--1s", "99999999999999999999s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn base64_comes_in_either_alphabet() {
        for text in ["-_8=", "-_8", "+/8=", "+/8"] {
            assert_eq!(base64(text), Some(vec![0xfb, 0xff]), "{text}");
        }
        assert_eq!(base64("no base64"), None);
    }
}
