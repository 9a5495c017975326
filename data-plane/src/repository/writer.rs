//! This node as a writer of records: its clock, its events, and the places where tests make it die.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use entrepot_domain::{Digest, RepositoryName};
use entrepot_proto::convert::event::{Image, Kind};
use entrepot_records::ManifestLink;
use entrepot_records::commit::{Change, Step, Writer};
use entrepot_store::{Error, Key};
use uuid::Uuid;

use super::Repositories;
use crate::failpoint;
use crate::peers::Forget;

#[async_trait]
impl Writer for Repositories {
    fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    async fn record(&self, name: &RepositoryName, incarnation: Uuid, changes: Vec<Change>) -> Result<(), Error> {
        let events = changes.into_iter().map(event).collect();
        self.outbox.record(name, incarnation, events).await
    }

    fn on_replaced(&self, key: &Key) {
        drop(self.peers.tell(&Forget::key(key)));
    }

    fn after_step(&self, step: Step) {
        match step {
            Step::ManifestStored => failpoint::hit("manifest.after_object"),
            Step::ManifestReported => failpoint::hit("manifest.after_events"),
            Step::RepositoryWritten => failpoint::hit("manifest.after_repository"),
            Step::ManifestLinked => failpoint::hit("manifest.after_link"),
            Step::TagWritten => failpoint::hit("manifest.after_tag"),
            Step::ConfigReported => failpoint::hit("fill.after_events"),
            Step::BlobLinked => failpoint::hit("fill.after_link"),
            Step::MoveReported => failpoint::hit("sync.before_tag"),
        }
    }
}

/// The event that tells of a change.
fn event(change: Change) -> Kind {
    match change {
        Change::Repository(record) => {
            let settings = record.settings.settings();
            Kind::RepositoryCreated { rule_uid: record.rule_uid, create_time: record.create_time, settings }
        }
        Change::Image { digest, link } => Kind::ImageCached(image(digest, *link)),
        Change::Tag { tag, record } => Kind::TagMoved {
            tag,
            digest: record.digest,
            revision: record.revision,
            validate_time: record.validate_time,
        },
        Change::Config { digest, platform } => Kind::ConfigCached { digest, platform },
    }
}

fn image(digest: Digest, link: ManifestLink) -> Image {
    let signed = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    Image {
        digest,
        media_type: link.media_type,
        manifest_size_bytes: signed(link.size_bytes),
        content_size_bytes: signed(link.content_size_bytes),
        platforms: link.platforms,
        children: link.children.into_iter().map(|child| child.digest).collect(),
        config: link.config.map(|config| config.digest),
        cache_time: link.cache_time,
        revision: link.revision,
    }
}
