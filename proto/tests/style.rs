//! Walks the descriptors: what every service, message and field of the contract has to have.

#![expect(clippy::unwrap_used, reason = "these are tests, their helpers too")]

use entrepot_proto::DESCRIPTORS;
use prost_reflect::{
    Cardinality, DescriptorPool, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor,
    MethodDescriptor, Value,
};

fn pool() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTORS).unwrap()
}

fn is_ours(package: &str) -> bool {
    package.starts_with("entrepot.")
}

fn messages() -> Vec<MessageDescriptor> {
    pool().all_messages().filter(|message| is_ours(message.package_name()) && !message.is_map_entry()).collect()
}

fn enums() -> Vec<EnumDescriptor> {
    pool().all_enums().filter(|descriptor| is_ours(descriptor.package_name())).collect()
}

/// The methods of operators' services; nodes' have rules of their own.
fn methods() -> Vec<MethodDescriptor> {
    let services: Vec<_> = pool().services().filter(|service| is_ours(service.package_name())).collect();
    services.iter().flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

fn has(message: &MessageDescriptor, field: &str, is: impl Fn(&Kind) -> bool) -> bool {
    message.get_field_by_name(field).is_some_and(|field| is(&field.kind()) && !field.is_list())
}

fn is_message(kind: &Kind, name: &str) -> bool {
    kind.as_message().is_some_and(|message| message.full_name() == name)
}

/// The comment above what is at `path` in a file.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref().unwrap();
    let location = info.location.iter().find(|location| location.path == path);
    location.map(|location| location.leading_comments().trim().to_owned()).unwrap_or_default()
}

fn behaviours(field: &FieldDescriptor) -> Vec<String> {
    let extension = field.parent_pool().get_extension_by_name("google.api.field_behavior").unwrap();
    let options = field.options();
    let Value::List(values) = options.get_extension(&extension).into_owned() else { return Vec::new() };
    let kind = extension.kind();
    let names = values.iter().filter_map(|value| kind.as_enum()?.get_value(value.as_enum_number()?));
    names.map(|name| name.name().to_owned()).collect()
}

/// The message that a standard method is about: `CreateRule` and `Rule`.
fn resource_of(method: &MethodDescriptor, verb: &str) -> Option<MessageDescriptor> {
    let noun = method.name().strip_prefix(verb)?;
    method.parent_pool().get_message_by_name(&format!("entrepot.v1.{noun}"))
}

#[test]
fn everything_has_a_comment() {
    for service in pool().services().filter(|service| is_ours(service.package_name())) {
        let file = service.parent_file();
        let text = comment(&file, service.path());
        assert!(text.contains("Life cycle:"), "{}: the comment tells its life cycle", service.full_name());
        for method in service.methods() {
            let text = comment(&file, method.path());
            assert!(text.contains("Callers: "), "{}: the comment says who may call", method.full_name());
            assert!(text.contains("Errors: "), "{}: the comment says which errors to expect", method.full_name());
        }
    }
    for message in messages() {
        let file = message.parent_file();
        assert!(!comment(&file, message.path()).is_empty(), "{}", message.full_name());
        for field in message.fields() {
            assert!(!comment(&file, field.path()).is_empty(), "{}", field.full_name());
        }
        // An optional field is in a oneof that is not written down.
        for oneof in message.oneofs().filter(|oneof| !oneof.is_synthetic()) {
            assert!(!comment(&file, oneof.path()).is_empty(), "{}", oneof.full_name());
        }
    }
    for descriptor in enums() {
        let file = descriptor.parent_file();
        assert!(!comment(&file, descriptor.path()).is_empty(), "{}", descriptor.full_name());
        for value in descriptor.values() {
            assert!(!comment(&file, value.path()).is_empty(), "{}", value.full_name());
        }
    }
}

#[test]
fn enums_begin_at_unspecified() {
    for descriptor in enums() {
        let zero = descriptor.get_value(0).unwrap();
        assert!(zero.name().ends_with("_UNSPECIFIED"), "{}", zero.full_name());
    }
}

#[test]
fn lists_page_from_day_one() {
    for method in methods().iter().filter(|method| method.name().starts_with("List")) {
        let (request, answer) = (method.input(), method.output());
        assert!(has(&request, "page_size", |kind| *kind == Kind::Int32), "{}", request.full_name());
        assert!(has(&request, "page_token", |kind| *kind == Kind::String), "{}", request.full_name());
        assert!(has(&answer, "next_page_token", |kind| *kind == Kind::String), "{}", answer.full_name());
        let lists = answer.fields().filter(FieldDescriptor::is_list).count();
        assert_eq!(lists, 1, "{}: one list", answer.full_name());
    }
}

#[test]
fn creates_can_be_repeated() {
    for method in methods().iter().filter(|method| method.name().starts_with("Create")) {
        let request = method.input();
        assert!(has(&request, "request_id", |kind| *kind == Kind::String), "{}", request.full_name());
    }
}

#[test]
fn updates_take_a_mask_and_an_etag() {
    for method in methods().iter().filter(|method| method.name().starts_with("Update")) {
        let request = method.input();
        let is_mask = |kind: &Kind| is_message(kind, "google.protobuf.FieldMask");
        assert!(has(&request, "update_mask", is_mask), "{}", request.full_name());
        let resource = resource_of(method, "Update").unwrap();
        assert!(has(&resource, "etag", |kind| *kind == Kind::String), "{}", resource.full_name());
        assert_eq!(method.output(), resource, "{}: an update returns the resource", method.full_name());
        let delete = method.name().replacen("Update", "Delete", 1);
        let delete = method.parent_service().methods().find(|other| other.name() == delete).unwrap();
        assert!(has(&delete.input(), "etag", |kind| *kind == Kind::String), "{}", delete.input().full_name());
    }
}

#[test]
fn standard_methods_return_the_resource() {
    for method in methods() {
        for verb in ["Get", "Delete", "Revoke"] {
            if let Some(resource) = resource_of(&method, verb) {
                assert_eq!(method.output(), resource, "{}", method.full_name());
            }
        }
    }
}

#[test]
fn resources_say_what_may_be_set() {
    for method in methods() {
        let Some(resource) = resource_of(&method, "Get") else { continue };
        let name = resource.get_field_by_name("name").unwrap();
        assert_eq!(behaviours(&name), ["IDENTIFIER"], "{}", name.full_name());
        for field in resource.fields().filter(|field| field.name().ends_with("_time") || field.name() == "uid") {
            assert_eq!(behaviours(&field), ["OUTPUT_ONLY"], "{}", field.full_name());
        }
    }
}

#[test]
fn instants_are_timestamps_that_end_in_time() {
    let is_timestamp = |field: &FieldDescriptor| is_message(&field.kind(), "google.protobuf.Timestamp");
    for field in messages().iter().flat_map(|message| message.fields().collect::<Vec<_>>()) {
        assert_eq!(field.name().ends_with("_time"), is_timestamp(&field), "{}", field.full_name());
        assert_ne!(field.cardinality(), Cardinality::Required, "{}", field.full_name());
    }
}
