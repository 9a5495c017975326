//! Events: what nodes learn while they serve.
//!
//! During an upgrade, nodes and control planes are of different releases. So nodes pass events on as bytes. An event
//! with something that is not known here is [`Unread::Unknown`]: it is neither wrong nor to be dropped, but must be
//! kept for a later release.

use chrono::{DateTime, Utc};
use entrepot_domain::digest::DigestError;
use entrepot_domain::template::RepositorySettings;
use entrepot_domain::{Digest, MediaType, RepositoryName, Tag};
use prost::Message as _;
use prost::bytes::Bytes;
use uuid::Uuid;

use super::{READER, Violations, template, time, timestamp};
use crate::node::v1 as wire;

/// The longest platform; it is enough for `os/architecture/variant` with 32 bytes each.
const MAX_PLATFORM_BYTES: usize = 100;

/// Something that a node learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Unique among all events.
    pub id: Uuid,
    pub repository: RepositoryName,
    pub incarnation: Uuid,
    pub kind: Kind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The repository was created.
    RepositoryCreated {
        /// The rule that fills it.
        rule_uid: Option<Uuid>,
        /// When it was created.
        create_time: DateTime<Utc>,
        /// The settings that it was created with.
        settings: RepositorySettings,
    },
    /// A manifest or index was cached.
    ImageCached(Image),
    /// A tag was set, moved, confirmed or dropped.
    TagMoved {
        tag: Tag,
        /// Its digest now; `None` if it was dropped.
        digest: Option<Digest>,
        /// The record's revision.
        revision: i64,
        /// When the upstream confirmed it, or reported it as gone.
        validate_time: Option<DateTime<Utc>>,
    },
    /// A manifest was pulled.
    Pulled { digest: Digest, pull_time: DateTime<Utc> },
    /// The configuration of an image was cached.
    ConfigCached {
        digest: Digest,
        /// The platform of the image.
        platform: String,
    },
}

/// The facts about a manifest or index that the index of the control plane keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub digest: Digest,
    pub media_type: MediaType,
    /// Its own size.
    pub manifest_size_bytes: i64,
    /// The size of the configuration and the layers together.
    pub content_size_bytes: i64,
    /// The platforms that the manifest mentions.
    pub platforms: Vec<String>,
    /// The manifests that it lists.
    pub children: Vec<Digest>,
    /// Its configuration.
    pub config: Option<Digest>,
    /// When it was cached.
    pub cache_time: DateTime<Utc>,
    /// The revision of its link.
    pub revision: i64,
}

/// Why an event could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// It is of a later release, which understands this field.
    #[error("`{field}` is of a later release than this one")]
    Unknown {
        /// The path of the field within the request.
        field: String,
    },
    /// No release can read it; this names every invalid field.
    #[error(transparent)]
    Wrong(#[from] Violations),
}

/// A report of events, in the form in which nodes store and send it.
pub fn report<'e>(node_id: &str, events: impl IntoIterator<Item = &'e wire::Event>) -> wire::ReportEventsRequest {
    let events = events.into_iter().map(|event| Bytes::from(event.encode_to_vec())).collect();
    wire::ReportEventsRequest { node_id: node_id.to_owned(), events }
}

impl Event {
    /// Reads the event at `field` of a request.
    ///
    /// # Errors
    /// If it is of a later release, or names every invalid field.
    pub fn read(field: &str, event: &[u8]) -> Result<Self, Unread> {
        let event = wire::Event::decode(event).map_err(|error| Violations::one(field, error))?;
        let mut read = Reader { field, violations: Violations::default(), unknown: None };
        if event.minimum_reader > READER {
            read.unknown::<()>("minimum_reader");
        }
        let id = read.parse("event_id", &event.event_id);
        let repository = read.parse("repository", &event.repository);
        let incarnation = read.parse("incarnation", &event.incarnation);
        let kind = match &event.kind {
            Some(wire::event::Kind::RepositoryCreated(created)) => created_kind(&mut read, created),
            Some(wire::event::Kind::ImageCached(cached)) => image(&mut read, cached).map(Kind::ImageCached),
            Some(wire::event::Kind::TagMoved(moved)) => moved_kind(&mut read, moved),
            Some(wire::event::Kind::Pulled(pulled)) => pulled_kind(&mut read, pulled),
            Some(wire::event::Kind::ConfigCached(cached)) => config_kind(&mut read, cached),
            #[cfg(feature = "future-release")]
            Some(wire::event::Kind::ConfigNoted(cached)) => config_kind(&mut read, cached),
            None => read.unknown("kind"),
        };
        // What seems wrong here may be valid in a later release.
        if let Some(field) = read.unknown {
            return Err(Unread::Unknown { field });
        }
        let event = (|| Some(Self { id: id?, repository: repository?, incarnation: incarnation?, kind: kind? }))();
        Ok(read.violations.finish(event)?)
    }

    /// The wire form of the event, which happened at `time`.
    pub fn to_wire(&self, time: DateTime<Utc>) -> wire::Event {
        wire::Event {
            event_id: self.id.to_string(),
            event_time: Some(timestamp(time)),
            repository: self.repository.to_string(),
            incarnation: self.incarnation.to_string(),
            kind: Some(self.kind.to_wire()),
            minimum_reader: 0,
        }
    }
}

impl Kind {
    fn to_wire(&self) -> wire::event::Kind {
        match self {
            Self::RepositoryCreated { rule_uid, create_time, settings } => {
                wire::event::Kind::RepositoryCreated(wire::RepositoryCreated {
                    rule_uid: rule_uid.map(|uid| uid.to_string()).unwrap_or_default(),
                    create_time: Some(timestamp(*create_time)),
                    settings: Some(template::settings_to_node(settings)),
                })
            }
            Self::ImageCached(image) => wire::event::Kind::ImageCached(image.to_wire()),
            Self::TagMoved { tag, digest, revision, validate_time } => wire::event::Kind::TagMoved(wire::TagMoved {
                tag: tag.to_string(),
                digest: digest.as_ref().map(ToString::to_string).unwrap_or_default(),
                revision: *revision,
                validate_time: validate_time.map(timestamp),
            }),
            Self::Pulled { digest, pull_time } => wire::event::Kind::Pulled(wire::Pulled {
                digest: digest.to_string(),
                pull_time: Some(timestamp(*pull_time)),
            }),
            Self::ConfigCached { digest, platform } => {
                #[cfg(not(feature = "future-release"))]
                use wire::event::Kind::ConfigCached as Kind;
                #[cfg(feature = "future-release")]
                use wire::event::Kind::ConfigNoted as Kind;
                Kind(wire::ConfigCached { digest: digest.to_string(), platform: platform.clone() })
            }
        }
    }
}

impl Image {
    fn to_wire(&self) -> wire::ImageCached {
        wire::ImageCached {
            digest: self.digest.to_string(),
            media_type: self.media_type.to_string(),
            manifest_size_bytes: self.manifest_size_bytes,
            content_size_bytes: self.content_size_bytes,
            platforms: self.platforms.clone(),
            children: self.children.iter().map(Digest::to_string).collect(),
            cache_time: Some(timestamp(self.cache_time)),
            config_digest: self.config.as_ref().map(Digest::to_string).unwrap_or_default(),
            revision: self.revision,
        }
    }
}

/// Reads the fields of one event, and collects what is wrong with them.
struct Reader<'a> {
    field: &'a str,
    violations: Violations,
    /// The first field with something of a later release.
    unknown: Option<String>,
}

impl Reader<'_> {
    fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, name: &str, text: &str) -> Option<T> {
        self.violations.take(&format!("{}.{name}", self.field), text.parse())
    }

    fn optional<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, name: &str, text: &str) -> Option<Option<T>> {
        if text.is_empty() { Some(None) } else { self.parse(name, text).map(Some) }
    }

    fn digest(&mut self, name: &str, text: &str) -> Option<Digest> {
        match text.parse() {
            Err(DigestError::UnknownAlgorithm) => self.unknown(name),
            read => self.violations.take(&format!("{}.{name}", self.field), read),
        }
    }

    fn optional_digest(&mut self, name: &str, text: &str) -> Option<Option<Digest>> {
        if text.is_empty() { Some(None) } else { self.digest(name, text).map(Some) }
    }

    fn media_type(&mut self, name: &str, text: &str) -> Option<MediaType> {
        match text.parse() {
            Err(_) if text.contains('/') => self.unknown(name),
            read => self.violations.take(&format!("{}.{name}", self.field), read),
        }
    }

    fn time(&mut self, name: &str, wire: Option<&prost_types::Timestamp>) -> Option<DateTime<Utc>> {
        wire.and_then(time).or_else(|| self.wrong(name, "must be a timestamp"))
    }

    fn unknown<T>(&mut self, name: &str) -> Option<T> {
        self.unknown.get_or_insert_with(|| format!("{}.{name}", self.field));
        None
    }

    fn wrong<T>(&mut self, name: &str, why: &str) -> Option<T> {
        self.violations.add(format!("{}.{name}", self.field), why);
        None
    }

    fn size(&mut self, name: &str, bytes: i64) -> Option<i64> {
        if bytes >= 0 { Some(bytes) } else { self.wrong(name, "must not be negative") }
    }

    fn platform(&mut self, name: &str, text: &str) -> Option<String> {
        let legal = (1..=MAX_PLATFORM_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if legal { Some(text.to_owned()) } else { self.wrong(name, "must be such as `linux/arm64`") }
    }
}

fn created_kind(read: &mut Reader<'_>, created: &wire::RepositoryCreated) -> Option<Kind> {
    let rule_uid = read.optional("repository_created.rule_uid", &created.rule_uid);
    let create_time = read.time("repository_created.create_time", created.create_time.as_ref());
    // Older nodes send none, which means the defaults.
    let settings = template::settings_from_node(created.settings.as_ref());
    Some(Kind::RepositoryCreated { rule_uid: rule_uid?, create_time: create_time?, settings })
}

fn image(read: &mut Reader<'_>, cached: &wire::ImageCached) -> Option<Image> {
    let digest = read.digest("image_cached.digest", &cached.digest);
    let media_type = read.media_type("image_cached.media_type", &cached.media_type);
    let manifest_size_bytes = read.size("image_cached.manifest_size_bytes", cached.manifest_size_bytes);
    let content_size_bytes = read.size("image_cached.content_size_bytes", cached.content_size_bytes);
    let platforms: Option<_> =
        cached.platforms.iter().map(|platform| read.platform("image_cached.platforms", platform)).collect();
    let children: Option<_> = cached.children.iter().map(|child| read.digest("image_cached.children", child)).collect();
    let config = read.optional_digest("image_cached.config_digest", &cached.config_digest);
    let cache_time = read.time("image_cached.cache_time", cached.cache_time.as_ref());
    Some(Image {
        digest: digest?,
        media_type: media_type?,
        manifest_size_bytes: manifest_size_bytes?,
        content_size_bytes: content_size_bytes?,
        platforms: platforms?,
        children: children?,
        config: config?,
        cache_time: cache_time?,
        revision: cached.revision,
    })
}

fn moved_kind(read: &mut Reader<'_>, moved: &wire::TagMoved) -> Option<Kind> {
    let tag = read.parse("tag_moved.tag", &moved.tag);
    let digest = read.optional_digest("tag_moved.digest", &moved.digest);
    let validate_time = match &moved.validate_time {
        Some(wire) => read.time("tag_moved.validate_time", Some(wire)).map(Some),
        None => Some(None),
    };
    Some(Kind::TagMoved { tag: tag?, digest: digest?, revision: moved.revision, validate_time: validate_time? })
}

fn pulled_kind(read: &mut Reader<'_>, pulled: &wire::Pulled) -> Option<Kind> {
    let digest = read.digest("pulled.digest", &pulled.digest);
    let pull_time = read.time("pulled.pull_time", pulled.pull_time.as_ref());
    Some(Kind::Pulled { digest: digest?, pull_time: pull_time? })
}

fn config_kind(read: &mut Reader<'_>, cached: &wire::ConfigCached) -> Option<Kind> {
    let digest = read.digest("config_cached.digest", &cached.digest);
    let platform = read.platform("config_cached.platform", &cached.platform);
    Some(Kind::ConfigCached { digest: digest?, platform: platform? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Option<wire::event::Kind>) -> wire::Event {
        wire::Event {
            event_id: Uuid::nil().to_string(),
            repository: "hub/nginx".into(),
            incarnation: Uuid::nil().to_string(),
            kind,
            ..Default::default()
        }
    }

    #[test]
    fn events_survive_the_wire() {
        let (digest, at) = (Digest::sha256(b""), DateTime::UNIX_EPOCH);
        let image = Image {
            digest: digest.clone(),
            media_type: MediaType::OciIndex,
            manifest_size_bytes: 1,
            content_size_bytes: 2,
            platforms: vec!["linux/arm64/v8".into()],
            children: vec![digest.clone()],
            config: None,
            cache_time: at,
            revision: 3,
        };
        let moved =
            |digest| Kind::TagMoved { tag: "v1".parse().unwrap(), digest, revision: 3, validate_time: Some(at) };
        let frozen = RepositorySettings::lenient("hub", "IMMUTABLE", &[], [("team", "platform")]);
        for kind in [
            Kind::RepositoryCreated { rule_uid: Some(Uuid::max()), create_time: at, settings: frozen },
            Kind::RepositoryCreated { rule_uid: None, create_time: at, settings: RepositorySettings::default() },
            Kind::ImageCached(Image { config: Some(digest.clone()), ..image.clone() }),
            Kind::ImageCached(image),
            moved(Some(digest.clone())),
            moved(None),
            Kind::Pulled { digest: digest.clone(), pull_time: at },
            Kind::ConfigCached { digest, platform: "linux/arm64/v8".into() },
        ] {
            let repository = "hub/nginx".parse().unwrap();
            let event = Event { id: Uuid::nil(), repository, incarnation: Uuid::nil(), kind };
            assert_eq!(Event::read("events[0]", &event.to_wire(at).encode_to_vec()), Ok(event));
        }
    }

    #[test]
    fn every_wrong_field_is_named_from_the_request_on() {
        let mut wrong =
            event(Some(wire::event::Kind::TagMoved(wire::TagMoved { digest: "latest".into(), ..Default::default() })));
        wrong.repository = "Hub".into();
        let Err(Unread::Wrong(violations)) = Event::read("events[7]", &wrong.encode_to_vec()) else { panic!() };
        let fields: Vec<&str> = violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["events[7].repository", "events[7].tag_moved.tag", "events[7].tag_moved.digest"]);
        assert!(matches!(Event::read("events[0]", b"no event"), Err(Unread::Wrong(_))));
    }

    #[test]
    fn what_a_later_release_says_is_unknown_and_never_wrong() {
        let unknown = |event: &wire::Event| match Event::read("events[0]", &event.encode_to_vec()) {
            Err(Unread::Unknown { field }) => field,
            other => panic!("{other:?}"),
        };
        // Neither its kind is known, nor whether it has a repository at all.
        assert_eq!(unknown(&wire::Event::default()), "events[0].kind");
        let pulled = |digest: &str| {
            let pulled = wire::Pulled { digest: digest.to_owned(), pull_time: Some(timestamp(DateTime::UNIX_EPOCH)) };
            event(Some(wire::event::Kind::Pulled(pulled)))
        };
        let known = pulled(&Digest::sha256(b"").to_string());
        assert!(Event::read("events[0]", &known.encode_to_vec()).is_ok());
        assert_eq!(unknown(&wire::Event { minimum_reader: READER + 1, ..known }), "events[0].minimum_reader");
        assert_eq!(unknown(&pulled(&format!("blake3:{}", "a".repeat(64)))), "events[0].pulled.digest");
        let image = wire::ImageCached { media_type: "example/later".to_owned(), ..Default::default() };
        let image = event(Some(wire::event::Kind::ImageCached(image)));
        assert_eq!(unknown(&image), "events[0].image_cached.media_type");
    }
}
