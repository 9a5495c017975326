//! Enum values as the command always shows them: the names in the .proto without the prefix that all names of the enum
//! share, such as `DOCKER_HUB` for `UPSTREAM_KIND_DOCKER_HUB`.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, EnumDescriptor, Kind, ReflectMessage as _};

use super::Shown;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(entrepot_proto::DESCRIPTORS).expect("the descriptors were built with us"));

/// An answer whose fields can be accessed by name.
pub(super) fn dynamic<T: Shown>(answer: &T) -> DynamicMessage {
    let descriptor = POOL.get_message_by_name(T::MESSAGE).expect("every shown message is in the descriptors");
    let mut message = DynamicMessage::new(descriptor);
    message.transcode_from(answer).expect("a message fits its own descriptor");
    message
}

/// The value of an enum field for people, such as `docker hub`; the number, if this release does not know it.
pub(crate) fn word<T: Shown>(answer: &T, field: &str) -> String {
    let message = dynamic(answer);
    let field = message.descriptor().get_field_by_name(field).expect("a shown field is in the descriptors");
    let number = message.get_field(&field).as_enum_number().expect("a word is that of an enum");
    let Kind::Enum(descriptor) = field.kind() else { return number.to_string() };
    match name(&descriptor, number) {
        Some(name) => name.to_lowercase().replace('_', " "),
        None => number.to_string(),
    }
}

/// The name of an enum value without the enum's prefix; `None` for an unknown number.
pub(super) fn name(descriptor: &EnumDescriptor, number: i32) -> Option<String> {
    let value = descriptor.get_value(number)?;
    let prefix = prefix(descriptor.name());
    Some(value.name().strip_prefix(&prefix).unwrap_or(value.name()).to_owned())
}

/// `UPSTREAM_KIND_` for `UpstreamKind`.
fn prefix(name: &str) -> String {
    let mut prefix = String::new();
    for (i, letter) in name.char_indices() {
        if i > 0 && letter.is_ascii_uppercase() {
            prefix.push('_');
        }
        prefix.push(letter.to_ascii_uppercase());
    }
    prefix + "_"
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrepot_proto::v1;

    #[test]
    fn no_value_of_any_enum_is_shown_with_its_prefix() {
        let ours = POOL.all_enums().filter(|descriptor| descriptor.package_name().starts_with("entrepot."));
        let mut seen = 0;
        for descriptor in ours {
            for value in descriptor.values() {
                let shown = name(&descriptor, value.number()).unwrap();
                assert_eq!(value.name(), format!("{}{shown}", prefix(descriptor.name())), "{}", value.full_name());
                assert!(!shown.is_empty() && shown != value.name(), "{}", value.full_name());
                seen += 1;
            }
        }
        assert!(seen > 50, "{seen}");
    }

    #[test]
    fn words_are_for_people() {
        let upstream = |kind| v1::Upstream { kind, ..Default::default() };
        assert_eq!(word(&upstream(v1::UpstreamKind::DockerHub.into()), "kind"), "docker hub");
        assert_eq!(word(&upstream(0), "kind"), "unspecified");
        assert_eq!(word(&upstream(1000), "kind"), "1000");
    }
}
