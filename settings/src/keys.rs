//! The keys that both planes hold. They are only read here, never created: two programs that each created one would not
//! understand each other.

use std::path::PathBuf;

use entrepot_runtime::chain;
use entrepot_runtime::config::{Reader, Reported, Section};
use entrepot_trust::{ClusterKey, KeyFileError, PublicKey, SnapshotSigner, SnapshotTrust};

const SECTION: &str = "keys";
const CLUSTER: (&str, &str) = ("cluster_key_file", "/etc/entrepot/keys/cluster.key");
const SEED: (&str, &str) = ("snapshot_seed_file", "/etc/entrepot/keys/snapshot.key");
const PUBLIC: (&str, &str) = ("snapshot_public_key_files", "/etc/entrepot/keys/snapshot.pub");

/// The keys of the control plane.
#[derive(Debug)]
pub struct ControlKeys {
    /// Shared by the whole cluster.
    pub cluster_key: ClusterKey,
    /// The key that signs snapshots.
    pub snapshot_signer: SnapshotSigner,
    /// The keys whose snapshots count as published: its own, and the previous one during an exchange.
    pub snapshot_trust: SnapshotTrust,
}

/// The keys of a node.
#[derive(Clone, Debug)]
pub struct NodeKeys {
    /// Shared by the whole cluster.
    pub cluster_key: ClusterKey,
    /// The keys whose snapshots the node follows.
    pub snapshot_trust: SnapshotTrust,
}

impl ControlKeys {
    /// Reads the section `[keys]`, and the files that it names.
    ///
    /// # Errors
    /// If a file is missing or broken; the reader keeps the mistakes.
    pub fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let mut section = reader.section(SECTION);
        let cluster_key = cluster_key(&mut section);
        let signer = section
            .get::<PathBuf>(SEED.0, SEED.1)
            .and_then(|path| SnapshotSigner::load(path).map_err(|error| unusable(&mut section, SEED.0, &error)));
        // If one file serves both programs, its own key is in this list, too, but needs no file there.
        let public = if section.is_set(PUBLIC.0) { public_keys(&mut section) } else { own_only(&mut section) };
        let (snapshot_signer, mut public) = (signer?, public?);
        public.retain(|key| *key != snapshot_signer.public_key());
        if public.len() > 1 {
            return Err(section.problem(
                PUBLIC.0,
                "names two keys, and neither belongs to snapshot_seed_file: name its own key and at most one other, the old" ,
            ));
        }
        let snapshot_trust = SnapshotTrust::new(snapshot_signer.public_key(), public.pop());
        Ok(Self { cluster_key: cluster_key?, snapshot_signer, snapshot_trust })
    }
}

impl NodeKeys {
    /// Reads the section `[keys]`, and the files that it names.
    ///
    /// # Errors
    /// If a file is missing or broken; the reader keeps the mistakes.
    pub fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let mut section = reader.section(SECTION);
        section.pass_over(SEED.0);
        let cluster_key = cluster_key(&mut section);
        let mut public = public_keys(&mut section)?.into_iter();
        let Some(first) = public.next() else {
            return Err(section.problem(PUBLIC.0, "must name the file of the key that signs snapshots"));
        };
        Ok(Self { cluster_key: cluster_key?, snapshot_trust: SnapshotTrust::new(first, public.next()) })
    }
}

fn cluster_key(section: &mut Section<'_>) -> Result<ClusterKey, Reported> {
    let path = section.get::<PathBuf>(CLUSTER.0, CLUSTER.1)?;
    ClusterKey::load(path).map_err(|error| unusable(section, CLUSTER.0, &error))
}

fn public_keys(section: &mut Section<'_>) -> Result<Vec<PublicKey>, Reported> {
    let paths = section.get::<Vec<PathBuf>>(PUBLIC.0, PUBLIC.1)?;
    if paths.len() > 2 {
        return Err(
            section.problem(PUBLIC.0, "must name at most two files: the key in use, and the one before or next")
        );
    }
    // All files are read, so that all mistakes are reported.
    let keys: Vec<_> = paths
        .into_iter()
        .map(|path| PublicKey::load(path).map_err(|error| unusable(section, PUBLIC.0, &error)))
        .collect();
    keys.into_iter().collect()
}

fn own_only(section: &mut Section<'_>) -> Result<Vec<PublicKey>, Reported> {
    section.get::<Vec<PathBuf>>(PUBLIC.0, PUBLIC.1).map(|_| Vec::new())
}

fn unusable(section: &mut Section<'_>, key: &str, error: &KeyFileError) -> Reported {
    section.problem(key, chain(error).to_string())
}
