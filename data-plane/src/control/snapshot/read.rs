//! Reads a snapshot, as far as this release understands it.
//!
//! During an upgrade, a fleet has nodes of two releases. An older node leaves out single items that it does not
//! understand, so that everything else, and above all revocations, continues to arrive.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use entrepot_domain::{Action, NamespacePrefix, PrefixMap, Rule, Secret, future};
use entrepot_proto::convert::access::PermissionSet;
use entrepot_proto::convert::{READER, Violations, snapshot as convert, template};
use entrepot_proto::node::v1 as pb;
use entrepot_runtime::chain;
use entrepot_trust::ClusterKey;
use entrepot_trust::access_key::{AccessKeyHash, HashError};
use entrepot_trust::cluster_key::UnsealError;
use prost::Message as _;
use uuid::Uuid;

use super::{AccessKey, Clients, Item, LeftOut, Principal, Snapshot, Source, Version};
use crate::budget::AccountHandle;
use crate::config::limits;

/// Why a snapshot cannot be run, or an item in it is not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// The bytes are not a snapshot.
    #[error("the snapshot cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    /// The control plane says that this release must not run it, or must not use an item of it.
    #[error("it is for readers from {minimum} on, and this release is reader {READER}: upgrade this node")]
    TooNew {
        /// The lowest reader number that may.
        minimum: i32,
    },
    /// Something in it breaks a rule that the control plane should have kept, or follows a rule of a later release.
    #[error(transparent)]
    Malformed(#[from] Violations),
    /// A uid in it is invalid.
    #[error("{field} `{value}` is no uid")]
    Uid {
        field: &'static str,
        /// The text in it.
        value: String,
    },
    /// A permission set that this release does not know.
    #[error("the permission set `{0}` is not known here")]
    PermissionSet(String),
    /// The upstream of a rule is missing.
    #[error("the upstream {0} is not there or not understood here")]
    Upstream(Uuid),
    /// A secret in it cannot be unsealed with this node's cluster key.
    #[error("a secret of the snapshot does not open with this node's cluster key: {what}")]
    Sealed { what: String },
    /// A secret in it was sealed in the form of a later release.
    #[error("{what} was sealed in a manner that is not known here")]
    Seal { what: String },
    /// The hash of a secret is of a kind that this release does not know.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// A password is not text.
    #[error("the password is no text")]
    Password,
    /// No client can be made for one of its upstreams.
    #[error("no client can be made for it")]
    Client(#[from] entrepot_upstream::BuildError),
}

/// Reads the items of one snapshot.
struct Reader<'r> {
    key: &'r ClusterKey,
    registry_id: Uuid,
    previous: Option<&'r Snapshot>,
    clients: &'r Clients,
    left_out: Vec<LeftOut>,
}

impl Snapshot {
    /// Reads a snapshot whose signature was checked. Clients of unchanged upstreams are taken from `previous`, with
    /// their connections and tokens. This takes time, so it must not run on a thread that serves.
    pub(crate) fn decode(
        bytes: &[u8],
        key: &ClusterKey,
        previous: Option<&Self>,
        clients: &Clients,
    ) -> Result<Self, SnapshotError> {
        let wire = pb::Snapshot::decode(bytes)?;
        readable(wire.minimum_reader)?;
        let version = wire.version.unwrap_or_default();
        let version = Version { epoch: version.epoch, revision: version.revision };
        let registry_id = uid("registry_id", &wire.registry_id)?;
        // Clients tell upstreams which registry is asking.
        let previous = previous.filter(|previous| previous.registry_id == registry_id);
        let mut read = Reader { key, registry_id, previous, clients, left_out: Vec::new() };
        let upstreams = read.upstreams(&wire.upstreams)?;
        let rules = read.rules(&wire.rules, &upstreams)?;
        let templates = read.templates(&wire.templates)?;
        let (principals, access_keys) = read.principals(wire.principals)?;
        let build_time =
            wire.build_time.and_then(|time| DateTime::from_timestamp(time.seconds, time.nanos.try_into().ok()?));
        let left_out = read.left_out;
        let hold_time = wire.hold_duration.and_then(|time| Duration::try_from(time).ok()).unwrap_or_default();
        Ok(Self {
            version,
            registry_id,
            build_time,
            hold_time: hold_time.min(limits::HOLD),
            rules,
            templates,
            upstreams,
            principals,
            access_keys,
            left_out,
        })
    }
}

impl Reader<'_> {
    /// The item, or a note that it is left out.
    ///
    /// # Errors
    /// If this node has another cluster key, which is not a matter of releases.
    fn item<T>(&mut self, item: String, read: Result<T, SnapshotError>) -> Result<Item<T>, SnapshotError> {
        match read {
            Ok(value) => Ok(Item::Understood(Arc::new(value))),
            Err(error @ SnapshotError::Sealed { .. }) => Err(error),
            Err(error) => {
                let left_out = LeftOut { item: item.into(), reason: chain(&error).to_string().into() };
                self.left_out.push(left_out.clone());
                Ok(Item::LeftOut(left_out))
            }
        }
    }

    fn upstreams(&mut self, wire: &[pb::SnapshotUpstream]) -> Result<HashMap<Uuid, Source>, SnapshotError> {
        let mut upstreams = HashMap::new();
        for upstream in wire {
            let read = self.source(upstream);
            if let Item::Understood(source) = self.item(format!("upstreams/{}", upstream.upstream_id), read)? {
                upstreams.insert(source.upstream.uid, Source::clone(&source));
            }
        }
        Ok(upstreams)
    }

    /// The upstream with its client, which is taken from the previous snapshot if nothing has changed.
    fn source(&self, wire: &pb::SnapshotUpstream) -> Result<Source, SnapshotError> {
        readable(wire.minimum_reader)?;
        let uid = uid("the uid", &wire.uid)?;
        let same = self.previous.and_then(|snapshot| snapshot.upstreams.get(&uid));
        if let Some(same) = same.filter(|source| source.upstream.revision == wire.revision) {
            return Ok(same.clone());
        }
        let password = if wire.username.is_empty() { None } else { Some(self.password(uid, wire)?) };
        let upstream = convert::upstream(wire, password)?;
        let account = self.clients.budgets.account(&upstream);
        let client = entrepot_upstream::Client::with_metrics(
            &upstream,
            self.registry_id,
            self.clients.limits,
            &self.clients.metrics,
            Arc::new(AccountHandle(account.clone())),
        )?;
        Ok(Source { upstream: Arc::new(upstream), client, account })
    }

    fn password(&self, uid: Uuid, wire: &pb::SnapshotUpstream) -> Result<Secret<String>, SnapshotError> {
        let password = self.unseal(convert::password_purpose(uid), &wire.sealed_password)?;
        let password = String::from_utf8(password.expose().clone()).map_err(|_| SnapshotError::Password)?;
        Ok(Secret::new(password))
    }

    fn rules(
        &mut self,
        wire: &[pb::SnapshotRule],
        upstreams: &HashMap<Uuid, Source>,
    ) -> Result<PrefixMap<Item<Rule>>, SnapshotError> {
        let mut rules: Vec<(NamespacePrefix, Item<Rule>)> = Vec::with_capacity(wire.len());
        for rule in wire {
            let read = readable(rule.minimum_reader).and_then(|()| Ok(convert::rule(rule)?));
            let read = read.and_then(|rule| match upstreams.contains_key(&rule.upstream_uid) {
                true => Ok(rule),
                false => Err(SnapshotError::Upstream(rule.upstream_uid)),
            });
            let item = self.item(format!("rules/{}", rule.rule_id), read)?;
            rules.extend(rule.prefix.parse().ok().map(|prefix| (prefix, item)));
        }
        Ok(rules.into_iter().collect())
    }

    fn templates(
        &mut self,
        wire: &[pb::SnapshotTemplate],
    ) -> Result<PrefixMap<Item<entrepot_domain::Template>>, SnapshotError> {
        let mut templates: Vec<(NamespacePrefix, Item<entrepot_domain::Template>)> = Vec::with_capacity(wire.len());
        for template in wire {
            let read = readable(template.minimum_reader).and_then(|()| Ok(template::from_snapshot(template)?));
            let item = self.item(format!("templates/{}", template.template_id), read)?;
            templates.extend(template.prefix.parse().ok().map(|prefix| (prefix, item)));
        }
        Ok(templates.into_iter().collect())
    }

    /// The principals and their keys.
    #[expect(clippy::type_complexity, reason = "two maps of one list")]
    fn principals(
        &mut self,
        wire: Vec<pb::SnapshotPrincipal>,
    ) -> Result<(HashMap<Uuid, Principal>, HashMap<String, AccessKey>), SnapshotError> {
        let (mut principals, mut access_keys) = (HashMap::new(), HashMap::new());
        for principal in wire {
            let item = format!("principals/{}", principal.principal_id);
            let read = principal_uid(&principal);
            let Item::Understood(uid) = self.item(item.clone(), read)? else { continue };
            // Actions that are not known here grant nothing.
            let actions = principal.actions.iter().filter_map(|name| Action::from_name(name)).collect();
            principals.insert(*uid, Principal { id: principal.principal_id.into(), actions });
            for key in principal.access_keys {
                let read = self.hash(&key);
                if let Item::Understood(hash) = self.item(format!("{item}/accessKeys/{}", key.key_id), read)? {
                    let key_of = AccessKey { principal_uid: *uid, hash: AccessKeyHash::clone(&hash) };
                    access_keys.insert(key.key_id, key_of);
                }
            }
        }
        Ok((principals, access_keys))
    }

    fn hash(&self, key: &pb::SnapshotAccessKey) -> Result<AccessKeyHash, SnapshotError> {
        readable(key.minimum_reader)?;
        let hash = self.unseal(convert::access_key_purpose(&key.key_id), &key.sealed_hash)?;
        Ok(AccessKeyHash::decode(hash.expose())?)
    }

    fn unseal(&self, what: String, sealed: &[u8]) -> Result<Secret<Vec<u8>>, SnapshotError> {
        self.key.unseal(&what, sealed).map_err(|error| match error {
            UnsealError::Refused => SnapshotError::Sealed { what },
            UnsealError::Malformed => SnapshotError::Seal { what },
        })
    }
}

fn principal_uid(principal: &pb::SnapshotPrincipal) -> Result<Uuid, SnapshotError> {
    readable(principal.minimum_reader)?;
    let set = &principal.permission_set;
    if PermissionSet::from_name(set).is_none() && future::actions(set).is_none() {
        return Err(SnapshotError::PermissionSet(set.clone()));
    }
    uid("the uid", &principal.uid)
}

/// Whether this release may use something with this minimum reader number.
fn readable(minimum: i32) -> Result<(), SnapshotError> {
    if minimum > READER { Err(SnapshotError::TooNew { minimum }) } else { Ok(()) }
}

fn uid(field: &'static str, value: &str) -> Result<Uuid, SnapshotError> {
    value.parse().map_err(|_| SnapshotError::Uid { field, value: value.to_owned() })
}
