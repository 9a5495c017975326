//! What this release writes for other releases to read stands in the tree, and what a later one writes passes through this
//! one unchanged. `ENTREPOT_WRITE_GOLDEN=1` writes the files anew.

#![expect(clippy::unwrap_used, reason = "these are tests, their helpers too")]

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use entrepot_domain::freshness::{Mode, Policy, TagWindow, WhenDeleted, WhenDenied};
use entrepot_domain::template::RepositorySettings;
use entrepot_domain::{Digest, MediaType, Rule};
use entrepot_proto::DESCRIPTORS;
use entrepot_proto::convert::event::{self, Event, Image, Kind, Unread};
use entrepot_proto::convert::{READER, snapshot, template, timestamp};
use entrepot_proto::node::v1 as wire;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, Value};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{FieldDescriptorProto, FileDescriptorSet};
use uuid::Uuid;

fn at() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn uid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn events() -> Vec<(&'static str, Event)> {
    let (digest, config) = (Digest::sha256(b"manifest"), Digest::sha256(b"config"));
    let settings = RepositorySettings::lenient("hub", "IMMUTABLE", &[], [("team", "platform")]);
    let image = Image {
        digest: digest.clone(),
        media_type: MediaType::OciManifest,
        manifest_size_bytes: 500,
        content_size_bytes: 4000,
        platforms: vec!["linux/arm64/v8".to_owned()],
        children: vec![Digest::sha256(b"child")],
        config: Some(config.clone()),
        cache_time: at(),
        revision: 3,
    };
    let moved = |digest| Kind::TagMoved { tag: "v1".parse().unwrap(), digest, revision: 3, validate_time: Some(at()) };
    let kinds = [
        ("repository_created", Kind::RepositoryCreated { rule_uid: Some(uid(4)), create_time: at(), settings }),
        ("image_cached", Kind::ImageCached(image)),
        ("tag_moved", moved(Some(digest.clone()))),
        ("tag_dropped", moved(None)),
        ("pulled", Kind::Pulled { digest, pull_time: at() }),
        ("config_cached", Kind::ConfigCached { digest: config, platform: "linux/arm64/v8".to_owned() }),
    ];
    let event = |(name, kind)| {
        let repository = "hub/library/nginx".parse().unwrap();
        (name, Event { id: uid(1), repository, incarnation: uid(2), kind })
    };
    kinds.into_iter().map(event).collect()
}

fn a_rule() -> Rule {
    Rule {
        uid: uid(4),
        id: "hub".parse().unwrap(),
        prefix: "hub".parse().unwrap(),
        upstream_uid: uid(5),
        upstream_prefix: "mirror".parse().unwrap(),
        freshness: Policy {
            mode: Mode::Background,
            immutable_tags: vec!["v*".parse().unwrap()],
            max_stale: Some(std::time::Duration::from_secs(604_800)),
            when_deleted: WhenDeleted::Drop,
            when_denied: WhenDenied::Fail,
            tag_windows: vec![TagWindow { pattern: "latest".parse().unwrap(), window: None, mode: Some(Mode::Off) }],
            ..Policy::default()
        },
    }
}

fn a_snapshot() -> wire::Snapshot {
    let settings = RepositorySettings::lenient("hub", "IMMUTABLE", &[], [("team", "platform")]);
    let template = entrepot_domain::Template {
        uid: uid(6),
        id: "hub".parse().unwrap(),
        prefix: "hub".parse().unwrap(),
        tag_mutability: settings.tag_mutability,
        resource_tags: settings.resource_tags,
    };
    wire::Snapshot {
        version: Some(wire::SnapshotVersion { epoch: 1, revision: 42 }),
        registry_id: uid(3).to_string(),
        build_time: Some(timestamp(at())),
        rules: vec![snapshot::rule_to_wire(&a_rule())],
        upstreams: vec![wire::SnapshotUpstream {
            uid: uid(5).to_string(),
            upstream_id: "docker-hub".to_owned(),
            kind: "DOCKER_HUB".to_owned(),
            endpoint: "https://registry.example".to_owned(),
            allow_hosts: vec!["cdn.example".to_owned()],
            username: "me".to_owned(),
            sealed_password: b"sealed".to_vec(),
            revision: 7,
            fallback_endpoints: vec!["https://mirror.example".to_owned()],
            ..Default::default()
        }],
        principals: vec![wire::SnapshotPrincipal {
            uid: uid(7).to_string(),
            principal_id: "ci".to_owned(),
            permission_set: "PULLER".to_owned(),
            access_keys: vec![wire::SnapshotAccessKey {
                key_id: "AKABCDEFGHIJKLMNOP27".to_owned(),
                sealed_hash: b"sealed".to_vec(),
                minimum_reader: 0,
            }],
            actions: ["pull", "create", "fill"].map(str::to_owned).into(),
            minimum_reader: 0,
        }],
        templates: vec![template::to_snapshot(&template)],
        minimum_reader: 0,
        hold_duration: Some(entrepot_proto::convert::duration(std::time::Duration::from_secs(5))),
    }
}

/// What this release writes, by the names of its files.
fn written() -> Vec<(String, &'static str, Vec<u8>)> {
    let event = |(name, event): (&str, Event)| {
        (format!("event_{name}"), "entrepot.node.v1.Event", event.to_wire(at()).encode_to_vec())
    };
    let mut written: Vec<_> = events().into_iter().map(event).collect();
    written.push(("snapshot".to_owned(), "entrepot.node.v1.Snapshot", a_snapshot().encode_to_vec()));
    written
}

fn file(name: &str, ending: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.{ending}"))
}

fn as_text(pool: &DescriptorPool, message: &str, bytes: &[u8]) -> String {
    let descriptor = pool.get_message_by_name(message).unwrap();
    let message = DynamicMessage::decode(descriptor, bytes).unwrap();
    format!("{}\n", serde_json::to_string_pretty(&message).unwrap())
}

#[test]
fn what_this_release_writes_is_what_stands_in_the_tree() {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    for (name, message, bytes) in written() {
        let text = as_text(&pool, message, &bytes);
        if std::env::var_os("ENTREPOT_WRITE_GOLDEN").is_some() {
            std::fs::create_dir_all(file(&name, "bin").parent().unwrap()).unwrap();
            std::fs::write(file(&name, "bin"), &bytes).unwrap();
            std::fs::write(file(&name, "json"), &text).unwrap();
        }
        let golden = std::fs::read(file(&name, "bin")).unwrap();
        assert_eq!(std::fs::read_to_string(file(&name, "json")).unwrap(), text, "{name}: see the test's first lines");
        assert_eq!(golden, bytes, "{name}: see the test's first lines");
    }
}

#[test]
fn what_stands_in_the_tree_is_read_as_it_was_meant() {
    for (name, event) in events() {
        let golden = std::fs::read(file(&format!("event_{name}"), "bin")).unwrap();
        assert_eq!(Event::read("event", &golden), Ok(event), "{name}");
    }
    let golden = std::fs::read(file("snapshot", "bin")).unwrap();
    let golden = wire::Snapshot::decode(golden.as_slice()).unwrap();
    assert_eq!(golden, a_snapshot());
    let read = snapshot::rule(&golden.rules[0]).unwrap();
    assert_eq!(read.uid, a_rule().uid);
    assert!(template::from_snapshot(&golden.templates[0]).is_ok());
}

/// The forms of a release that has a field more in events and rules, and a kind of event more.
fn of_a_later_release() -> DescriptorPool {
    let mut files = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let nodes = files.file.iter_mut().find(|file| file.name().ends_with("node/v1/nodes.proto")).unwrap();
    let field = |name: &str, number, oneof_index| FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(Type::String.into()),
        oneof_index,
        ..Default::default()
    };
    for message in &mut nodes.message_type {
        match message.name() {
            "Event" => {
                message.field.push(field("zone", 1001, None));
                message.field.push(field("image_signed", 1002, Some(0)));
            }
            "TagMoved" | "SnapshotRule" => message.field.push(field("zone", 1001, None)),
            _ => {}
        }
    }
    DescriptorPool::from_file_descriptor_set(files).unwrap()
}

#[test]
fn events_of_a_later_release_pass_through_this_one_and_back() {
    let pool = of_a_later_release();
    let descriptor = pool.get_message_by_name("entrepot.node.v1.Event").unwrap();
    let text = |text: &str| Value::String(text.to_owned());
    for (name, event) in events() {
        let bytes = event.to_wire(at()).encode_to_vec();
        let mut known = DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).unwrap();
        known.set_field_by_name("zone", text("b"));
        if let Some(Value::Message(moved)) = known.clone().get_field_by_name("tag_moved").as_deref()
            && known.has_field_by_name("tag_moved")
        {
            let mut moved = moved.clone();
            moved.set_field_by_name("zone", text("c"));
            known.set_field_by_name("tag_moved", Value::Message(moved));
        }
        let mut unknown = known.clone();
        unknown.set_field_by_name("image_signed", text("by me"));
        let (known, unknown) = (known.encode_to_vec(), unknown.encode_to_vec());

        // A node of this release finds both in the store and sends them on.
        let report = wire::ReportEventsRequest {
            node_id: "node-1".to_owned(),
            events: vec![known.clone().into(), unknown.clone().into()],
        };
        let report = wire::ReportEventsRequest::decode(report.encode_to_vec().as_slice()).unwrap();
        let sent: Vec<&[u8]> = report.events.iter().map(AsRef::as_ref).collect();
        assert_eq!(sent, [&known[..], &unknown[..]], "{name}");
        // A control plane of this release takes the one, and not the other.
        assert_eq!(Event::read("event", sent[0]), Ok(event), "{name}");
        assert!(matches!(Event::read("event", sent[1]), Err(Unread::Unknown { .. })), "{name}");
        // The later one reads what it has written.
        let back = DynamicMessage::decode(descriptor.clone(), sent[1]).unwrap();
        assert_eq!(back.get_field_by_name("image_signed").unwrap().as_str(), Some("by me"));
        assert_eq!(back.get_field_by_name("zone").unwrap().as_str(), Some("b"));
        assert_eq!(back.descriptor().full_name(), "entrepot.node.v1.Event");
    }
    let too_new = wire::Event { minimum_reader: READER + 1, ..events().remove(0).1.to_wire(at()) };
    let report = event::report("node-1", [&too_new]);
    assert!(matches!(Event::read("event", &report.events[0]), Err(Unread::Unknown { .. })));
}

#[test]
fn a_rule_of_a_later_release_is_read_without_the_fields_that_it_has_more() {
    let pool = of_a_later_release();
    let descriptor = pool.get_message_by_name("entrepot.node.v1.SnapshotRule").unwrap();
    let bytes = snapshot::rule_to_wire(&a_rule()).encode_to_vec();
    let mut rule = DynamicMessage::decode(descriptor, bytes.as_slice()).unwrap();
    rule.set_field_by_name("zone", Value::String("b".to_owned()));
    let read = wire::SnapshotRule::decode(rule.encode_to_vec().as_slice()).unwrap();
    assert_eq!(read, snapshot::rule_to_wire(&a_rule()));
    let unknown = wire::SnapshotRule {
        freshness: Some(wire::SnapshotFreshness { mode: "SOMETIMES".to_owned(), ..Default::default() }),
        ..read
    };
    assert!(snapshot::rule(&unknown).unwrap_err().to_string().contains("`mode` is not known here"));
}
