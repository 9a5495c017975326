//! Answers as proto JSON with the field names of the .proto files; fields without a value are there too, so that
//! scripts find them.

use std::io::{self, Write};
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::{Listed, Shown};

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(entrepot_proto::DESCRIPTORS).expect("the descriptors were built with us"));

/// One answer as a document.
pub(super) fn one<T: Shown>(out: &mut dyn Write, answer: &T) -> io::Result<()> {
    document(out, &Json(dynamic(answer)))
}

/// A list as the document that one page with all items would be.
pub(super) fn list<T: Listed>(out: &mut dyn Write, items: &[T]) -> io::Result<()> {
    document(out, &List { field: T::ITEMS, items: items.iter().map(|item| Json(dynamic(item))).collect() })
}

fn document(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

fn dynamic<T: Shown>(answer: &T) -> DynamicMessage {
    let descriptor = POOL.get_message_by_name(T::MESSAGE).expect("every shown message is in the descriptors");
    let mut message = DynamicMessage::new(descriptor);
    message.transcode_from(answer).expect("a message fits its own descriptor");
    message
}

struct Json(DynamicMessage);

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
        self.0.serialize_with_options(serializer, &options)
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
    fn enums_are_names() {
        let upstream = v1::Upstream { kind: v1::UpstreamKind::Oci.into(), ..Default::default() };
        let document: serde_json::Value = serde_json::from_str(&text(|out| one(out, &upstream))).unwrap();
        assert_eq!(document["kind"], "OCI");
        assert_eq!(document["allow_plain_http"], false);
    }
}
