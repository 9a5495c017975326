//! Walks the descriptors: what every service, message and field of the contract has to have.

#![expect(clippy::unwrap_used, reason = "these are tests, their helpers too")]

use std::collections::BTreeSet;

use entrepot_proto::{DESCRIPTORS, PUBLIC_DESCRIPTORS};
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

fn files() -> Vec<FileDescriptor> {
    pool().files().filter(|file| is_ours(file.package_name())).collect()
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

/// What `google.api.resource` says of a message: the type, and how names of it look.
fn resource_type(message: &MessageDescriptor) -> Option<(String, Vec<String>)> {
    let extension = message.parent_pool().get_extension_by_name("google.api.resource")?;
    let options = message.options();
    let value = options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())?;
    let resource = value.as_message()?;
    let text = |name: &str| resource.get_field_by_name(name)?.as_str().map(str::to_owned);
    assert!(text("plural").is_some_and(|plural| !plural.is_empty()), "{}", message.full_name());
    assert!(text("singular").is_some_and(|singular| !singular.is_empty()), "{}", message.full_name());
    let patterns = resource.get_field_by_name("pattern")?;
    let patterns = patterns.as_list()?.iter().filter_map(|pattern| pattern.as_str().map(str::to_owned));
    Some((text("type")?, patterns.collect()))
}

/// The type that `google.api.resource_reference` says the names in a field are of: their own, or that of their children.
fn referred_type(field: &FieldDescriptor) -> Option<String> {
    let extension = field.parent_pool().get_extension_by_name("google.api.resource_reference")?;
    let options = field.options();
    let value = options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned())?;
    let reference = value.as_message()?;
    let text = |name: &str| Some(reference.get_field_by_name(name)?.as_str()?.to_owned());
    ["type", "child_type"].into_iter().filter_map(text).find(|text| !text.is_empty())
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
fn enum_values_begin_with_the_name_of_their_enum_and_at_unspecified() {
    for descriptor in enums() {
        let prefix = upper_snake(descriptor.name());
        let zero = descriptor.get_value(0).unwrap();
        assert_eq!(zero.name(), format!("{prefix}_UNSPECIFIED"), "{}", zero.full_name());
        for value in descriptor.values() {
            let rest = value.name().strip_prefix(&prefix).and_then(|rest| rest.strip_prefix('_'));
            assert!(rest.is_some_and(|rest| !rest.is_empty()), "{} begins with {prefix}_", value.full_name());
        }
    }
}

/// `UPSTREAM_KIND` for `UpstreamKind`.
fn upper_snake(name: &str) -> String {
    let with_bars = name.char_indices().flat_map(|(i, letter)| {
        let bar = (i > 0 && letter.is_ascii_uppercase()).then_some('_');
        bar.into_iter().chain([letter.to_ascii_uppercase()])
    });
    with_bars.collect()
}

#[test]
fn numbers_follow_the_order_in_the_file_and_leave_nothing_out() {
    for message in messages() {
        let descriptor = message.descriptor_proto();
        let ranges = descriptor.reserved_range.iter().flat_map(|range| range.start()..range.end());
        let reserved: BTreeSet<i32> = ranges.collect();
        let mut next = 1;
        for field in &descriptor.field {
            while reserved.contains(&next) {
                next += 1;
            }
            assert_eq!(field.number(), next, "{}.{}", message.full_name(), field.name());
            next += 1;
        }
    }
}

#[test]
fn a_file_is_about_one_service() {
    for file in files() {
        assert_eq!(file.services().count(), 1, "{}", file.name());
    }
}

#[test]
fn files_carry_the_options_of_languages() {
    for file in files() {
        let options = file.file_descriptor_proto().options.as_ref().unwrap();
        let texts = [
            &options.csharp_namespace,
            &options.go_package,
            &options.java_outer_classname,
            &options.java_package,
            &options.objc_class_prefix,
            &options.php_metadata_namespace,
            &options.php_namespace,
            &options.ruby_package,
        ];
        assert!(texts.iter().all(|text| text.is_some()), "{}: {options:?}", file.name());
        assert!(options.java_multiple_files(), "{}", file.name());
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
fn what_has_a_name_is_a_resource() {
    let mut seen = 0;
    for message in messages().iter().filter(|message| message.package_name() == "entrepot.v1") {
        let is_named = message.get_field_by_name("name").is_some_and(|name| behaviours(&name) == ["IDENTIFIER"]);
        let resource = resource_type(message);
        assert_eq!(resource.is_some(), is_named, "{}", message.full_name());
        let Some((type_name, patterns)) = resource else { continue };
        assert_eq!(type_name, format!("entrepot.dev/{}", message.name()));
        let name = message.get_field_by_name("name").unwrap();
        let said = comment(&message.parent_file(), name.path());
        let beginning = patterns[0].split_once('{').unwrap().0;
        assert!(said.starts_with(&format!("`{beginning}")), "{}: {said}", name.full_name());
        seen += 1;
    }
    assert!(seen >= 11, "{seen}");
}

#[test]
fn names_say_which_resource_they_are_of() {
    let resources: Vec<_> = messages().iter().filter_map(resource_type).collect();
    let collections: BTreeSet<&str> =
        resources.iter().flat_map(|(_, patterns)| patterns).filter_map(|pattern| pattern.split('/').next()).collect();
    let public = messages().into_iter().filter(|message| message.package_name() == "entrepot.v1");
    for field in public.flat_map(|message| message.fields().collect::<Vec<_>>()) {
        let referred = referred_type(&field);
        let said = comment(&field.parent_message().parent_file(), field.path());
        let is_name = field.kind() == Kind::String
            && field.name() != "filter"
            && behaviours(&field) != ["IDENTIFIER"]
            && collections.iter().any(|collection| said.contains(&format!("`{collection}/")));
        assert_eq!(referred.is_some(), is_name, "{}: {said}", field.full_name());
        let is_known = referred.is_none_or(|referred| resources.iter().any(|(type_name, _)| *type_name == referred));
        assert!(is_known, "{}", field.full_name());
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

#[test]
fn what_nodes_say_is_not_public() {
    let public = DescriptorPool::decode(PUBLIC_DESCRIPTORS).unwrap();
    assert!(public.services().all(|service| service.package_name() == "entrepot.v1"));
    assert_eq!(public.services().count() + 1, pool().services().count());
    for details in ["ErrorInfo", "BadRequest", "RetryInfo", "PreconditionFailure", "ResourceInfo", "Status"] {
        assert!(public.get_message_by_name(&format!("google.rpc.{details}")).is_some(), "{details}");
    }
}
