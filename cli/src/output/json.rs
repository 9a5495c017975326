//! Answers as proto JSON with the field names of the .proto files. Fields without a value are included, so that scripts
//! find them. Enum values have no prefix.

use std::io::{self, Write};

use prost_reflect::{DynamicMessage, Kind, ReflectMessage as _, SerializeOptions, Value};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::word::{dynamic, name};
use super::{Listed, Shown};

/// One answer as a document.
pub(super) fn one<T: Shown>(out: &mut dyn Write, answer: &T) -> io::Result<()> {
    document(out, &Json(dynamic(answer)))
}

/// A list, as the document of a single page with all items.
pub(super) fn list<T: Listed>(out: &mut dyn Write, items: &[T]) -> io::Result<()> {
    document(out, &List { field: T::ITEMS, items: items.iter().map(|item| Json(dynamic(item))).collect() })
}

fn document(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

struct Json(DynamicMessage);

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        message(&self.0, serializer)
    }
}

struct Field<'a>(&'a Value, &'a Kind);

impl Serialize for Field<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.0, self.1) {
            (Value::EnumNumber(number), Kind::Enum(descriptor)) => match name(descriptor, *number) {
                Some(name) => serializer.serialize_str(&name),
                None => serializer.serialize_i32(*number),
            },
            (Value::Message(value), _) => message(value, serializer),
            (Value::List(values), kind) => serializer.collect_seq(values.iter().map(|value| Field(value, kind))),
            (value, _) => scalar(value, serializer),
        }
    }
}

/// A message with all its fields, by number.
fn message<S: Serializer>(message: &DynamicMessage, serializer: S) -> Result<S::Ok, S::Error> {
    let descriptor = message.descriptor();
    if descriptor.package_name().starts_with("google.protobuf") {
        return message.serialize_with_options(serializer, &SerializeOptions::new());
    }
    let mut map = serializer.serialize_map(None)?;
    for field in descriptor.fields() {
        if field.supports_presence() && !message.has_field(&field) {
            // Absent fields are null; of a oneof, only the chosen field is included.
            if field.containing_oneof().is_none_or(|oneof| oneof.is_synthetic()) {
                map.serialize_entry(field.name(), &())?;
            }
        } else {
            map.serialize_entry(field.name(), &Field(&message.get_field(&field), &field.kind()))?;
        }
    }
    map.end()
}

/// A value that is neither an enum nor a message.
fn scalar<S: Serializer>(value: &Value, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Value::Bool(value) => serializer.serialize_bool(*value),
        Value::I32(value) => serializer.serialize_i32(*value),
        Value::U32(value) => serializer.serialize_u32(*value),
        // As in proto JSON, since readers of JSON may keep numbers as floats.
        Value::I64(value) => serializer.collect_str(value),
        Value::U64(value) => serializer.collect_str(value),
        Value::String(value) => serializer.serialize_str(value),
        Value::F32(_) | Value::F64(_) | Value::Bytes(_) | Value::Map(_) => {
            Err(serde::ser::Error::custom("the API shows no such values"))
        }
        Value::EnumNumber(_) | Value::Message(_) | Value::List(_) => {
            Err(serde::ser::Error::custom("a value does not fit the kind of its field"))
        }
    }
}

struct List {
    field: &'static str,
    items: Vec<Json>,
}

impl Serialize for List {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.field, &self.items)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrepot_proto::v1;

    fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut bytes = vec![];
        write(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_empty_list_is_a_document_too() {
        assert_eq!(text(|out| list::<v1::Repository>(out, &[])), "{\"repositories\":[]}\n");
        assert_eq!(text(|out| list::<v1::AccessKey>(out, &[])), "{\"access_keys\":[]}\n");
    }

    #[test]
    fn fields_have_the_names_of_the_proto_and_are_there_without_a_value() {
        let image = v1::Image {
            name: "repositories/demo/app/images/sha256:00".to_owned(),
            manifest_size_bytes: 9_007_199_254_740_993,
            cache_time: Some(prost_types::Timestamp { seconds: 1_763_929_623, nanos: 0 }),
            ..Default::default()
        };
        let document: serde_json::Value = serde_json::from_str(&text(|out| list(out, &[image]))).unwrap();
        let image = &document["images"][0];
        assert_eq!(image["manifest_size_bytes"], "9007199254740993");
        assert_eq!(image["cache_time"], "2025-11-23T20:27:03Z");
        assert_eq!(image["tags"], serde_json::json!([]));
        assert_eq!(image["last_pull_time"], serde_json::Value::Null);
    }

    #[test]
    fn enums_are_names_without_their_prefix() {
        let upstream = v1::Upstream {
            kind: v1::UpstreamKind::Oci.into(),
            health: Some(v1::UpstreamHealth { state: v1::UpstreamState::Away.into(), ..Default::default() }),
            ..Default::default()
        };
        let document: serde_json::Value = serde_json::from_str(&text(|out| one(out, &upstream))).unwrap();
        assert_eq!(document["kind"], "OCI");
        assert_eq!(document["health"]["state"], "AWAY");
        assert_eq!(document["allow_plain_http"], false);
        assert_eq!(document["budget"], serde_json::Value::Null);
        let template = v1::Template { applied_for: vec![1, 1000], ..Default::default() };
        let document: serde_json::Value = serde_json::from_str(&text(|out| one(out, &template))).unwrap();
        assert_eq!(document["applied_for"], serde_json::json!(["PULL_THROUGH_CACHE", 1000]));
    }
}
