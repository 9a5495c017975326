//! All keys, in one drawing:
//!
//! ```text
//! layout                                            the layout's version
//! content/<last 2 hex of the uuid>/<uuidv7>         bytes, put once, the name never used again
//! damaged/<uuidv7>                                  what nodes have read of that object, which is damaged
//! blobs/plain/<alg>/<hex>                           pointer: which object has the content of a digest
//! repositories/<name>/_repository                   live incarnation (or a tombstone), kind, rule, origin, create time
//! repositories/<name>/_<incarnation>/
//!     manifests/<alg>-<hex>                         link: object, media type, size, all that it names, revision
//!     blobs/<alg>-<hex>                             link: object, size, revision
//!     tags/<tag>                                    digest (or a tombstone), stamp, revision, validated time
//!     lists/tags                                    all tags as the upstream has listed them, and when
//!     lists/<alg>-<hex>                             the same for what refers to a manifest
//!     referrers/<alg>-<hex>/<alg>-<hex>             a cached manifest (the latter) that refers to the former
//! uploads/<node>/<uuidv7>                           key and upload id, put before the first part
//! pushes/<uuidv7>/session                           a push that is under way
//! pushes/<uuidv7>/tail-<n>                          bytes of it that do not fill a part yet
//! snapshot/head                                     names and signs the published snapshot; moves forward only
//! snapshot/<epoch>/<revision>/<uuid>                snapshots, numbers with 19 digits so that they sort
//! nodes/<id>                                        live nodes
//! events/<node>/<uuidv7>                            events that wait for the control plane
//! probe/<uuidv7>/…                                  a test of the bucket's abilities at a start, removed at once
//! ```
//!
//! Content has a name without its digest, so that it can be begun before the digest is known. `plain` is the domain of
//! content that is not encrypted; other domains share nothing with it. `_` cannot begin a part of a repository name, so
//! records never collide with names, and no key is both a file and a folder. [`parse`] reads any of these keys back.

use entrepot_domain::digest::Digest;
use entrepot_domain::{RepositoryName, ResourceId, Tag};
use entrepot_store::{Key, Prefix};
use uuid::Uuid;

/// The version of the layout.
pub fn version() -> Key {
    Key::new_unchecked("layout".to_owned())
}

/// An object that holds content.
pub fn content(object: Uuid) -> Key {
    let name = object.to_string();
    // The first digits of names that are made at one time are the same; the last ones spread them.
    let folder = &name[name.len() - 2..];
    Key::new_unchecked(format!("content/{folder}/{name}"))
}

/// All content.
pub fn contents_prefix() -> Prefix {
    Prefix::new_unchecked("content".to_owned())
}

/// The record of an object that nodes have found damaged.
pub fn damage(object: Uuid) -> Key {
    Key::new_unchecked(format!("damaged/{object}"))
}

/// The records of all objects that nodes have found damaged.
pub fn damages_prefix() -> Prefix {
    Prefix::new_unchecked("damaged".to_owned())
}

/// The pointer of a digest.
pub fn pointer(digest: &Digest) -> Key {
    Key::new_unchecked(format!("blobs/plain/{}/{}", digest.algorithm(), digest.hex()))
}

/// All pointers.
pub fn pointers_prefix() -> Prefix {
    Prefix::new_unchecked("blobs/plain".to_owned())
}

/// A repository's own record.
pub fn repository(name: &RepositoryName) -> Key {
    Key::new_unchecked(format!("repositories/{name}/_repository"))
}

/// The records of all repositories.
pub fn repositories_prefix() -> Prefix {
    Prefix::new_unchecked("repositories".to_owned())
}

/// The links and tags of one incarnation of a repository.
pub fn incarnation_prefix(name: &RepositoryName, incarnation: Uuid) -> Prefix {
    Prefix::new_unchecked(format!("repositories/{name}/_{incarnation}"))
}

/// The link that lets a repository show a manifest.
pub fn manifest_link(name: &RepositoryName, incarnation: Uuid, digest: &Digest) -> Key {
    Key::new_unchecked(format!("repositories/{name}/_{incarnation}/manifests/{}-{}", digest.algorithm(), digest.hex()))
}

/// All manifest links of one incarnation.
pub fn manifest_links_prefix(name: &RepositoryName, incarnation: Uuid) -> Prefix {
    Prefix::new_unchecked(format!("repositories/{name}/_{incarnation}/manifests"))
}

/// The link that lets a repository show a blob.
pub fn blob_link(name: &RepositoryName, incarnation: Uuid, digest: &Digest) -> Key {
    Key::new_unchecked(format!("repositories/{name}/_{incarnation}/blobs/{}-{}", digest.algorithm(), digest.hex()))
}

/// A tag's record.
pub fn tag(name: &RepositoryName, incarnation: Uuid, tag: &Tag) -> Key {
    Key::new_unchecked(format!("repositories/{name}/_{incarnation}/tags/{tag}"))
}

/// All tags of one incarnation.
pub fn tags_prefix(name: &RepositoryName, incarnation: Uuid) -> Prefix {
    Prefix::new_unchecked(format!("repositories/{name}/_{incarnation}/tags"))
}

/// The tags of a repository that its upstream has listed.
pub fn tag_list(name: &RepositoryName, incarnation: Uuid) -> Key {
    Key::new_unchecked(format!("repositories/{name}/_{incarnation}/lists/tags"))
}

/// The referrers of `subject` that the upstream has listed.
pub fn referrer_list(name: &RepositoryName, incarnation: Uuid, subject: &Digest) -> Key {
    Key::new_unchecked(format!("repositories/{name}/_{incarnation}/lists/{}-{}", subject.algorithm(), subject.hex()))
}

/// The record of a cached manifest that refers to `subject`.
pub fn referrer(name: &RepositoryName, incarnation: Uuid, subject: &Digest, digest: &Digest) -> Key {
    let folder = referrers_prefix(name, incarnation, subject);
    Key::new_unchecked(format!("{}{}-{}", folder.as_str(), digest.algorithm(), digest.hex()))
}

/// The records of all cached manifests that refer to `subject`.
pub fn referrers_prefix(name: &RepositoryName, incarnation: Uuid, subject: &Digest) -> Prefix {
    let subject = format!("{}-{}", subject.algorithm(), subject.hex());
    Prefix::new_unchecked(format!("repositories/{name}/_{incarnation}/referrers/{subject}"))
}

/// The record of an upload that a node has begun.
pub fn upload(node: &ResourceId, upload: Uuid) -> Key {
    Key::new_unchecked(format!("uploads/{node}/{upload}"))
}

/// All uploads that a node has begun.
pub fn uploads_prefix(node: &ResourceId) -> Prefix {
    Prefix::new_unchecked(format!("uploads/{node}"))
}

/// All uploads that any node has begun.
pub fn all_uploads_prefix() -> Prefix {
    Prefix::new_unchecked("uploads".to_owned())
}

/// The session of a push.
pub fn push_session(push: Uuid) -> Key {
    Key::new_unchecked(format!("pushes/{push}/session"))
}

/// Bytes of a push that do not fill a part yet.
pub fn push_tail(push: Uuid, number: u32) -> Key {
    Key::new_unchecked(format!("pushes/{push}/tail-{number}"))
}

/// All running pushes.
pub fn pushes_prefix() -> Prefix {
    Prefix::new_unchecked("pushes".to_owned())
}

/// The head, which says which snapshot is published.
pub fn snapshot_head() -> Key {
    Key::new_unchecked("snapshot/head".to_owned())
}

/// A snapshot. Neither number is negative.
pub fn snapshot(epoch: i64, revision: i64, object: Uuid) -> Key {
    Key::new_unchecked(format!("snapshot/{epoch:019}/{revision:019}/{object}"))
}

/// The head and all snapshots, the older ones first, the head last.
pub fn snapshots_prefix() -> Prefix {
    Prefix::new_unchecked("snapshot".to_owned())
}

/// The record of a live node.
pub fn node(id: &ResourceId) -> Key {
    Key::new_unchecked(format!("nodes/{id}"))
}

/// All live nodes.
pub fn nodes_prefix() -> Prefix {
    Prefix::new_unchecked("nodes".to_owned())
}

/// An event that waits for the control plane.
pub fn event(node: &ResourceId, event: Uuid) -> Key {
    Key::new_unchecked(format!("events/{node}/{event}"))
}

/// All events of a node that wait, the oldest first.
pub fn events_prefix(node: &ResourceId) -> Prefix {
    Prefix::new_unchecked(format!("events/{node}"))
}

/// Something that is written to try out a bucket. `name` is written like a key.
pub fn probe(probe: Uuid, name: &str) -> Key {
    Key::new_unchecked(format!("probe/{probe}/{name}"))
}

/// What all probes have written and not removed yet.
pub fn probes_prefix() -> Prefix {
    Prefix::new_unchecked("probe".to_owned())
}

/// What a key is for, with what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// See [`version`].
    Version,
    /// See [`content`].
    Content { object: Uuid },
    /// See [`damage`].
    Damage { object: Uuid },
    /// See [`pointer()`].
    Pointer { digest: Digest },
    /// See [`repository`].
    Repository { name: RepositoryName },
    /// See [`manifest_link`].
    ManifestLink { name: RepositoryName, incarnation: Uuid, digest: Digest },
    /// See [`blob_link`].
    BlobLink { name: RepositoryName, incarnation: Uuid, digest: Digest },
    /// See [`tag`].
    Tag { name: RepositoryName, incarnation: Uuid, tag: Tag },
    /// See [`tag_list`].
    TagList { name: RepositoryName, incarnation: Uuid },
    /// See [`referrer_list`].
    ReferrerList { name: RepositoryName, incarnation: Uuid, subject: Digest },
    /// See [`referrer`].
    Referrer { name: RepositoryName, incarnation: Uuid, subject: Digest, digest: Digest },
    /// See [`upload`].
    Upload { node: ResourceId, upload: Uuid },
    /// See [`push_session`].
    PushSession { push: Uuid },
    /// See [`push_tail`].
    PushTail { push: Uuid, number: u32 },
    /// See [`snapshot_head`].
    SnapshotHead,
    /// See [`snapshot`].
    Snapshot { epoch: i64, revision: i64, object: Uuid },
    /// See [`node`].
    Node { id: ResourceId },
    /// See [`event`].
    Event { node: ResourceId, event: Uuid },
    /// See [`probes_prefix`].
    Probe { probe: Uuid, name: Key },
}

/// Reads a key back; `None` if it is not in the drawing.
pub fn parse(key: &Key) -> Option<Parsed> {
    if *key == version() {
        return Some(Parsed::Version);
    }
    let (top, rest) = key.as_str().split_once('/')?;
    let parsed = match top {
        "content" => {
            let [_, object] = parts(rest)?;
            Parsed::Content { object: object.parse().ok()? }
        }
        "damaged" => Parsed::Damage { object: rest.parse().ok()? },
        "blobs" => {
            let ["plain", algorithm, hex] = parts(rest)? else { return None };
            Parsed::Pointer { digest: format!("{algorithm}:{hex}").parse().ok()? }
        }
        "repositories" => parse_record(rest)?,
        "uploads" => {
            let [node, upload] = parts(rest)?;
            Parsed::Upload { node: node.parse().ok()?, upload: upload.parse().ok()? }
        }
        "pushes" => parse_push(rest)?,
        "snapshot" if rest == "head" => Parsed::SnapshotHead,
        "snapshot" => {
            let [epoch, revision, object] = parts(rest)?;
            Parsed::Snapshot {
                epoch: epoch.parse().ok()?,
                revision: revision.parse().ok()?,
                object: object.parse().ok()?,
            }
        }
        "nodes" => Parsed::Node { id: rest.parse().ok()? },
        "events" => {
            let [node, event] = parts(rest)?;
            Parsed::Event { node: node.parse().ok()?, event: event.parse().ok()? }
        }
        "probe" => {
            let (probe, name) = rest.split_once('/')?;
            Parsed::Probe { probe: probe.parse().ok()?, name: name.parse().ok()? }
        }
        _ => return None,
    };
    // One spelling per key: a UUID in capitals or a number without its zeroes is somebody else's.
    (parsed.key() == *key).then_some(parsed)
}

impl Parsed {
    /// The key that this was read from.
    pub fn key(&self) -> Key {
        match self {
            Self::Version => version(),
            Self::Content { object } => content(*object),
            Self::Damage { object } => damage(*object),
            Self::Pointer { digest } => pointer(digest),
            Self::Repository { name } => repository(name),
            Self::ManifestLink { name, incarnation, digest } => manifest_link(name, *incarnation, digest),
            Self::BlobLink { name, incarnation, digest } => blob_link(name, *incarnation, digest),
            Self::Tag { name, incarnation, tag: id } => tag(name, *incarnation, id),
            Self::TagList { name, incarnation } => tag_list(name, *incarnation),
            Self::ReferrerList { name, incarnation, subject } => referrer_list(name, *incarnation, subject),
            Self::Referrer { name, incarnation, subject, digest } => referrer(name, *incarnation, subject, digest),
            Self::Upload { node, upload: id } => upload(node, *id),
            Self::PushSession { push } => push_session(*push),
            Self::PushTail { push, number } => push_tail(*push, *number),
            Self::SnapshotHead => snapshot_head(),
            Self::Snapshot { epoch, revision, object } => snapshot(*epoch, *revision, *object),
            Self::Node { id } => node(id),
            Self::Event { node, event: id } => event(node, *id),
            Self::Probe { probe: id, name } => probe(*id, name.as_str()),
        }
    }
}

/// What is below `pushes/`.
fn parse_push(path: &str) -> Option<Parsed> {
    let [push, last] = parts(path)?;
    let push = push.parse().ok()?;
    match last.strip_prefix("tail-") {
        Some(number) => Some(Parsed::PushTail { push, number: number.parse().ok()? }),
        None => (last == "session").then_some(Parsed::PushSession { push }),
    }
}

/// What is below `repositories/`. The first part that begins with `_` ends the name.
fn parse_record(path: &str) -> Option<Parsed> {
    let (name, record) = path.split_once("/_")?;
    let name: RepositoryName = name.parse().ok()?;
    if record == "repository" {
        return Some(Parsed::Repository { name });
    }
    let digest = |part: &str| part.replacen('-', ":", 1).parse::<Digest>().ok();
    if let Some([incarnation, "referrers", subject, last]) = parts(record) {
        let (incarnation, subject, digest) = (incarnation.parse().ok()?, digest(subject)?, digest(last)?);
        return Some(Parsed::Referrer { name, incarnation, subject, digest });
    }
    let [incarnation, kind, last] = parts(record)?;
    let incarnation = incarnation.parse().ok()?;
    Some(match kind {
        "manifests" => Parsed::ManifestLink { name, incarnation, digest: digest(last)? },
        "blobs" => Parsed::BlobLink { name, incarnation, digest: digest(last)? },
        "lists" if last == "tags" => Parsed::TagList { name, incarnation },
        "lists" => Parsed::ReferrerList { name, incarnation, subject: digest(last)? },
        "tags" => Parsed::Tag { name, incarnation, tag: last.parse().ok()? },
        _ => return None,
    })
}

fn parts<const N: usize>(path: &str) -> Option<[&str; N]> {
    let mut parts = path.split('/');
    let mut found = [""; N];
    for part in &mut found {
        *part = parts.next()?;
    }
    parts.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use entrepot_domain::digest::Algorithm;
    use proptest::prelude::*;

    fn digests() -> impl Strategy<Value = Digest> {
        (any::<bool>(), any::<u64>()).prop_map(|(long, seed)| {
            Digest::of(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, &seed.to_be_bytes())
        })
    }

    fn names() -> impl Strategy<Value = RepositoryName> {
        "(tags/|blobs/|manifests/|repositories/)?[a-z0-9]{1,9}((\\.|_|__|-{1,3})[a-z0-9]{1,9}){0,3}(/[a-z0-9]{1,9}){0,9}"
            .prop_map(|text| text.parse().unwrap())
    }

    fn ids() -> impl Strategy<Value = ResourceId> {
        "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?".prop_map(|text| text.parse().unwrap())
    }

    fn uuids() -> impl Strategy<Value = Uuid> {
        any::<u128>().prop_map(Uuid::from_u128)
    }

    fn all() -> impl Strategy<Value = Parsed> {
        let tags = "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}".prop_map(|text| text.parse().unwrap());
        let links = (names(), uuids(), digests());
        prop_oneof![
            Just(Parsed::Version),
            uuids().prop_map(|object| Parsed::Content { object }),
            uuids().prop_map(|object| Parsed::Damage { object }),
            digests().prop_map(|digest| Parsed::Pointer { digest }),
            uuids().prop_map(|push| Parsed::PushSession { push }),
            (uuids(), any::<u32>()).prop_map(|(push, number)| Parsed::PushTail { push, number }),
            names().prop_map(|name| Parsed::Repository { name }),
            links.prop_map(|(name, incarnation, digest)| Parsed::ManifestLink { name, incarnation, digest }),
            (names(), uuids(), digests()).prop_map(|(name, incarnation, digest)| Parsed::BlobLink {
                name,
                incarnation,
                digest
            }),
            (names(), uuids(), tags).prop_map(|(name, incarnation, tag)| Parsed::Tag { name, incarnation, tag }),
            (names(), uuids()).prop_map(|(name, incarnation)| Parsed::TagList { name, incarnation }),
            (names(), uuids(), digests()).prop_map(|(name, incarnation, subject)| Parsed::ReferrerList {
                name,
                incarnation,
                subject
            }),
            (names(), uuids(), digests(), digests()).prop_map(|(name, incarnation, subject, digest)| {
                Parsed::Referrer { name, incarnation, subject, digest }
            }),
            (ids(), uuids()).prop_map(|(node, upload)| Parsed::Upload { node, upload }),
            Just(Parsed::SnapshotHead),
            (0..=i64::MAX, 0..=i64::MAX, uuids()).prop_map(|(epoch, revision, object)| Parsed::Snapshot {
                epoch,
                revision,
                object
            }),
            ids().prop_map(|id| Parsed::Node { id }),
            (ids(), uuids()).prop_map(|(node, event)| Parsed::Event { node, event }),
            uuids().prop_map(|probe| Parsed::Probe { probe, name: Key::parse("a/1").unwrap() }),
        ]
    }

    proptest! {
        #[test]
        fn every_key_of_the_drawing_is_legal_and_read_back(parsed in all()) {
            let key = parsed.key();
            prop_assert_eq!(Key::parse(key.as_str()), Ok(key.clone()));
            prop_assert_eq!(parse(&key), Some(parsed));
        }

        #[test]
        fn no_key_is_both_a_file_and_a_folder(one in all(), two in all()) {
            let folder = format!("{}/", one.key());
            prop_assert!(!two.key().as_str().starts_with(&folder));
        }

        #[test]
        fn any_key_is_in_the_drawing_or_not(text in "(layout|content|damaged|blobs|pushes|repositories|snapshot|nodes|events|uploads|probe)(/[a-z0-9_-]{1,12}){0,4}") {
            if let Ok(key) = Key::parse(&text) && let Some(parsed) = parse(&key) {
                prop_assert_eq!(parsed.key(), key);
            }
        }
    }

    #[test]
    fn the_drawing_is_what_is_written() {
        let digest = Digest::sha256(b"");
        let (hex, id) = (digest.hex(), Uuid::nil());
        let name: RepositoryName = "hub/library/nginx".parse().unwrap();
        let node_id: ResourceId = "node-1".parse().unwrap();
        let within = format!("repositories/hub/library/nginx/_{id}");
        for (key, text) in [
            (version(), "layout".to_owned()),
            (content(Uuid::from_u128(0xab)), "content/ab/00000000-0000-0000-0000-0000000000ab".to_owned()),
            (damage(id), format!("damaged/{id}")),
            (pointer(&digest), format!("blobs/plain/sha256/{hex}")),
            (push_session(id), format!("pushes/{id}/session")),
            (push_tail(id, 3), format!("pushes/{id}/tail-3")),
            (repository(&name), "repositories/hub/library/nginx/_repository".to_owned()),
            (manifest_link(&name, id, &digest), format!("{within}/manifests/sha256-{hex}")),
            (blob_link(&name, id, &digest), format!("{within}/blobs/sha256-{hex}")),
            (tag(&name, id, &"v1".parse().unwrap()), format!("{within}/tags/v1")),
            (tag_list(&name, id), format!("{within}/lists/tags")),
            (referrer_list(&name, id, &digest), format!("{within}/lists/sha256-{hex}")),
            (referrer(&name, id, &digest, &digest), format!("{within}/referrers/sha256-{hex}/sha256-{hex}")),
            (upload(&node_id, id), format!("uploads/node-1/{id}")),
            (snapshot_head(), "snapshot/head".to_owned()),
            (snapshot(1, 42, id), format!("snapshot/0000000000000000001/0000000000000000042/{id}")),
            (node(&node_id), "nodes/node-1".to_owned()),
            (event(&node_id, id), format!("events/node-1/{id}")),
            (probe(id, "a/1"), format!("probe/{id}/a/1")),
        ] {
            assert_eq!(key.as_str(), text);
        }
    }

    #[test]
    fn prefixes_hold_their_keys() {
        let (digest, id) = (Digest::sha256(b""), Uuid::nil());
        let name: RepositoryName = "hub/nginx".parse().unwrap();
        let node_id: ResourceId = "node-1".parse().unwrap();
        for (prefix, key) in [
            (contents_prefix(), content(id)),
            (damages_prefix(), damage(id)),
            (pointers_prefix(), pointer(&digest)),
            (pushes_prefix(), push_session(id)),
            (pushes_prefix(), push_tail(id, 1)),
            (repositories_prefix(), repository(&name)),
            (incarnation_prefix(&name, id), blob_link(&name, id, &digest)),
            (manifest_links_prefix(&name, id), manifest_link(&name, id, &digest)),
            (tags_prefix(&name, id), tag(&name, id, &"v1".parse().unwrap())),
            (referrers_prefix(&name, id, &digest), referrer(&name, id, &digest, &digest)),
            (uploads_prefix(&node_id), upload(&node_id, id)),
            (all_uploads_prefix(), upload(&node_id, id)),
            (snapshots_prefix(), snapshot_head()),
            (nodes_prefix(), node(&node_id)),
            (events_prefix(&node_id), event(&node_id, id)),
            (probes_prefix(), probe(id, "a/1")),
        ] {
            assert!(key.as_str().starts_with(prefix.as_str()), "{key} in {prefix}");
        }
    }

    #[test]
    fn keys_with_another_spelling_are_not_ours() {
        let id = Uuid::nil();
        for text in [
            format!("snapshot/1/2/{id}"),
            format!("content/ab/{id}"),
            format!("content/{id}"),
            format!("pushes/{id}/tail-03"),
            format!("pushes/{id}/other"),
            format!("nodes/node-1/{id}"),
            format!("repositories/_{id}/tags/v1"),
            format!("repositories/a/_{id}/tags"),
            format!("repositories/a/_{id}/tags/a/b"),
            format!("events/node-1/{}", id.simple()),
            "repositories/_repository".to_owned(),
            "head".to_owned(),
        ] {
            assert_eq!(parse(&Key::parse(&text).unwrap()), None, "{text}");
        }
    }
}
