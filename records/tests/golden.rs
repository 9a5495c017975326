//! Records as this release writes them, byte for byte, and as a later release may write them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use chrono::DateTime;
use entrepot_domain::{Digest, MediaType};
use entrepot_records::{
    BlobLink, Kind, ListRecord, ManifestLink, Named, Origin, PointerRecord, PointerState, Provenance, Record,
    ReferrerRecord, RepositoryRecord, SettingsRecord, Stamp, State, TagRecord, encode, layout,
};
use entrepot_store::Key;
use serde_json::{Value, json};
use std::fmt::Debug;
use uuid::Uuid;

fn time() -> DateTime<chrono::Utc> {
    "2026-11-28T12:34:56.123456Z".parse().unwrap()
}

fn object() -> Key {
    layout::content("01931fd2-e8c0-7000-8000-0000000000ab".parse().unwrap())
}

fn origin() -> Origin {
    Origin::new("registry-1.docker.io", "library/nginx")
}

fn repository() -> RepositoryRecord {
    let settings = SettingsRecord {
        template: "hub".into(),
        tag_mutability: "IMMUTABLE_WITH_EXCLUSION".into(),
        tag_mutability_exclusions: vec!["edge*".into()],
        resource_tags: [("team".to_owned(), "web".to_owned())].into(),
        ..SettingsRecord::default()
    };
    RepositoryRecord {
        rule_uid: Some(Uuid::from_u128(2)),
        origin: Some(origin()),
        home_region: Some("eu-central-1".into()),
        delete_time_before: Some(time()),
        settings,
        automatic_sync: Some(true),
        write: Uuid::from_u128(9),
        ..RepositoryRecord::new(Uuid::from_u128(1), time())
    }
}

fn manifest_link() -> ManifestLink {
    ManifestLink {
        config: Some(Named::new(Digest::sha256(b"config"), 6)),
        layers: vec![Named::new(Digest::sha256(b"layer"), 5)],
        children: vec![Named::new(Digest::sha256(b"child"), 7)],
        subject: Some(Digest::sha256(b"subject")),
        artifact_type: Some("application/vnd.example.sbom".into()),
        platforms: vec!["linux/amd64".into()],
        content_size_bytes: 11,
        rule_uid: Some(Uuid::from_u128(2)),
        origin: Some(origin()),
        revision: 1_700_000_000_000_000,
        write: Uuid::from_u128(9),
        ..ManifestLink::new(object(), MediaType::OciManifest, 500, time())
    }
}

fn blob_link() -> BlobLink {
    BlobLink {
        platform: Some("linux/arm64/v8".into()),
        rule_uid: Some(Uuid::from_u128(2)),
        origin: Some(origin()),
        revision: 1_700_000_000_000_000,
        write: Uuid::from_u128(9),
        ..BlobLink::new(object(), 6, time())
    }
}

fn tag() -> TagRecord {
    TagRecord {
        link_revision: Some(1_700_000_000_000_000),
        stamp: Some(Stamp { region: "eu-central-1".into(), ..Stamp::at(time()) }),
        validate_time: Some(time()),
        rule_uid: Some(Uuid::from_u128(2)),
        origin: Some(origin()),
        write: Uuid::from_u128(9),
        ..TagRecord::new(Some(Digest::sha256(b"manifest")), 1_700_000_000_000_007)
    }
}

fn pointer() -> PointerRecord {
    PointerRecord {
        state: PointerState::Condemned.into(),
        condemn_time: Some(time()),
        delivered_by: vec!["registry-1.docker.io".into()],
        write: Uuid::from_u128(9),
        ..PointerRecord::new(object(), 500, time())
    }
}

fn list() -> ListRecord {
    let from = Provenance { rule_uid: Uuid::from_u128(2), origin: origin() };
    ListRecord::new(from, time(), vec!["latest".into(), "v1".into()])
}

/// A golden file has exactly what this release writes, and every later release must read it.
fn assert_golden<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug>(name: &str, record: &T) {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let written = String::from_utf8(encode(record).to_vec()).unwrap();
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(written, golden.trim_end(), "{name} is written otherwise than it was");
    assert_eq!(serde_json::from_str::<T>(&golden).unwrap(), *record, "{name} is read otherwise than it was");
}

#[test]
fn records_are_written_and_read_as_ever() {
    assert_golden("repository", &repository());
    assert_golden("repository_least", &RepositoryRecord::new(Uuid::from_u128(1), time()));
    let hosted = RepositoryRecord { kind: Kind::Hosted.into(), state: State::Deleted.into(), ..repository() };
    assert_golden("repository_deleted", &hosted);
    assert_golden("manifest_link", &manifest_link());
    assert_golden("manifest_link_deleted", &ManifestLink { state: State::Deleted.into(), ..manifest_link() });
    assert_golden("blob_link", &blob_link());
    assert_golden("tag", &tag());
    assert_golden("tag_deleted", &TagRecord { digest: None, link_revision: None, validate_time: None, ..tag() });
    assert_golden("pointer", &pointer());
    let live = PointerRecord { state: PointerState::Live.into(), condemn_time: None, ..pointer() };
    assert_golden("pointer_live", &live);
    assert_golden("pointer_erased", &PointerRecord { state: PointerState::Erased.into(), ..live });
    assert_golden("list", &list());
    assert_golden("referrer", &ReferrerRecord { descriptor: r#"{"digest":"x"}"#.into() });
}

/// Adds fields of a later release to each object in a record.
fn grow(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(grow);
            fields.insert("of_a_later_release".into(), json!({ "nested": [1, { "deep": null }], "words": "x" }));
        }
        Value::Array(values) => values.iter_mut().for_each(grow),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Reads a later release's record, changes it as this release does, and returns what the later release would read.
fn through_this_release<T: Record>(later: &Value, change: impl FnOnce(&mut T)) -> Value {
    let mut record: T = serde_json::from_value(later.clone()).unwrap();
    change(&mut record);
    record.set_write(Uuid::from_u128(10));
    serde_json::from_slice(&encode(&record)).unwrap()
}

#[test]
fn nothing_of_a_later_release_is_lost_through_a_rewrite() {
    let later = |record: &dyn Fn() -> Value, words: &[(&str, &str)]| {
        let mut value = record();
        // Unknown fields cannot be added to the marks of a resource, where they would be marks.
        let tags = value.pointer("/settings/resource_tags").cloned();
        grow(&mut value);
        if let (Some(tags), Some(settings)) = (tags, value.get_mut("settings")) {
            settings["resource_tags"] = tags;
        }
        for (field, word) in words {
            value[*field] = (*word).into();
        }
        value
    };
    let expect = |mut value: Value, field: &str, to: Value| {
        (value[field], value["write"]) = (to, json!(Uuid::from_u128(10)));
        value
    };

    let value = later(&|| serde_json::to_value(repository()).unwrap(), &[("state", "frozen"), ("kind", "virtual")]);
    let back = through_this_release(&value, |record: &mut RepositoryRecord| record.automatic_sync = Some(false));
    assert_eq!(back, expect(value, "automatic_sync", json!(false)));

    let words = [("state", "archived"), ("media_type", "application/vnd.example.manifest")];
    let value = later(&|| serde_json::to_value(manifest_link()).unwrap(), &words);
    let back = through_this_release(&value, |record: &mut ManifestLink| record.revision = 5);
    assert_eq!(back, expect(value, "revision", json!(5)));

    let value = later(&|| serde_json::to_value(blob_link()).unwrap(), &[("state", "archived")]);
    let back = through_this_release(&value, |record: &mut BlobLink| record.revision = 5);
    assert_eq!(back, expect(value, "revision", json!(5)));

    let value = later(&|| serde_json::to_value(tag()).unwrap(), &[]);
    let back = through_this_release(&value, |record: &mut TagRecord| record.revision = 5);
    assert_eq!(back, expect(value, "revision", json!(5)));

    let value = later(&|| serde_json::to_value(pointer()).unwrap(), &[("state", "quarantined")]);
    let back = through_this_release(&value, |record: &mut PointerRecord| record.size_bytes = 5);
    assert_eq!(back, expect(value, "size_bytes", json!(5)));

    let value = later(&|| serde_json::to_value(list()).unwrap(), &[]);
    let record: ListRecord = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(serde_json::to_value(record).unwrap(), value);
}

#[test]
fn what_is_not_understood_grants_nothing() {
    let read = |field: &str, word: &str| -> RepositoryRecord {
        let mut value = serde_json::to_value(repository()).unwrap();
        value[field] = word.into();
        serde_json::from_value(value).unwrap()
    };
    assert!(repository().is_live() && repository().not_understood().is_none());
    for (field, word) in [("state", "frozen"), ("kind", "virtual")] {
        let record = read(field, word);
        assert!(!record.is_live(), "{field}");
        assert_eq!(record.not_understood().unwrap(), format!("its {field} `{word}` is of another release"));
    }
    let mut value = serde_json::to_value(manifest_link()).unwrap();
    value["state"] = "archived".into();
    assert!(!serde_json::from_value::<ManifestLink>(value).unwrap().is_live());
    let mut value = serde_json::to_value(pointer()).unwrap();
    value["state"] = "quarantined".into();
    assert_eq!(serde_json::from_value::<PointerRecord>(value).unwrap().content(), None);
}

#[test]
fn objects_of_links_are_legal_keys() {
    let text = String::from_utf8(encode(&manifest_link()).to_vec()).unwrap();
    let escaping = text.replace(object().as_str(), "../../etc/passwd");
    assert!(serde_json::from_str::<ManifestLink>(&escaping).is_err());
}
