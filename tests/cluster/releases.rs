//! A fleet of two releases: the programs of this one, and those that play a later one (`entrepot_domain::future`). It is
//! upgraded and rolled back, member by member, while it is used: no pull fails of what both know, nothing is lost of what
//! only the later one knows, and nothing is opened by it.

mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use entrepot_domain::future;
use entrepot_proto::convert::event::{Event, Unread};
use entrepot_proto::node::v1 as wire;
use entrepot_proto::v1 as pb;
use entrepot_records::{SnapshotHead, layout};
use entrepot_store::{BlobStore as _, BucketStore, Key, Prefix};
use entrepot_test_support::{FakeUpstream, images, wait_until};
use http::StatusCode;
use prost::Message as _;

use self::load::{HOT, Load, hot};
use crate::client::Credential;
use crate::cluster::{Cluster, Company, Member, Setup};
use crate::report::report;

/// Long enough for HAProxy to look away before the listener closes.
const NOTICE: Duration = Duration::from_secs(3);

/// Nodes offer what waits every minute, in the end.
const OFFERED: Duration = Duration::from_secs(180);

/// The cluster, and what only the later release understands in it: an upstream `later`, whose rule has the same name, and
/// the principal `auditor`.
struct Fleet {
    cluster: Arc<Cluster>,
    load: Arc<Load>,
    store: BucketStore,
    upstream: FakeUpstream,
    auditor: Credential,
    this: PathBuf,
    later: PathBuf,
}

/// Records of the hot repositories that have the later release's field, and under which id each was written last.
type Marked = BTreeMap<Key, String>;

impl Fleet {
    async fn start(cluster: Cluster) -> Result<Self> {
        let later =
            std::env::var_os("ENTREPOT_LATER_PROGRAMS").context("ENTREPOT_LATER_PROGRAMS names their folder")?;
        let this = std::env::current_exe()?.ancestors().nth(2).context("the programs' folder")?.to_owned();
        let (cluster, upstream) = (Arc::new(cluster), FakeUpstream::start().await);
        let (store, api) = (cluster.store().await?, cluster.api());
        let load = Load::start(cluster.clone()).await?;
        api.rule("later", &upstream).await?;
        upstream.publish_image("cached", "v1", &[images::random_bytes(1, 1000)]);
        cluster.client().pull("later/cached", "v1").await?;

        let principal = pb::Principal { permission_set: pb::PermissionSet::Puller.into(), ..Default::default() };
        let (principal_id, request_id) = ("auditor".to_owned(), String::new());
        let request = pb::CreatePrincipalRequest { principal_id, principal: Some(principal), request_id };
        api.principals().create_principal(request).await?;
        let request = pb::CreateAccessKeyRequest { parent: "principals/auditor".to_owned(), request_id: String::new() };
        let created = api.access_keys().create_access_key(request).await?.into_inner();
        let key_id = created.access_key.context("a key")?.key_id;
        let auditor = Credential::Password(key_id, created.secret);
        // As a later release's API would write them. What the load changes has them published.
        let (kind, set) = (future::UPSTREAM_KIND, future::PERMISSION_SET);
        cluster.sql(&format!(
            "UPDATE upstreams SET kind = '{kind}', revision = revision + 1 WHERE upstream_id = 'later';
             UPDATE principals SET permission_set = '{set}' WHERE principal_id = 'auditor'"
        ));
        Ok(Self { cluster, load, store, upstream, auditor, this, later: later.into() })
    }

    /// Restarts a member with the programs in `folder`, and waits until the load has gone on with it.
    async fn run(&self, member: &Member, service: &str, folder: &Path) {
        let status = member.program.stop().await;
        assert_eq!(status.code(), Some(0), "`{}` was told to stop", member.name());
        member.program.move_to(folder);
        member.start().await;
        self.cluster.haproxy.until_sees(service, member.name(), true).await;
        self.load.until_it_has_gone_on().await;
        let release = if folder == self.this { "this release" } else { "the later release" };
        report(&format!("`{}` runs {release}; pulls so far", member.name()), self.load.pulls.load(Ordering::Relaxed));
    }

    async fn run_node(&self, number: usize, folder: &Path) {
        self.run(&self.cluster.nodes[number], "registry", folder).await;
    }

    async fn run_control_plane(&self, number: usize, folder: &Path) {
        self.run(&self.cluster.control_planes[number], "api", folder).await;
    }

    async fn status(&self, number: usize, credential: Option<&Credential>, path: &str) -> StatusCode {
        let client = self.cluster.nodes[number].client();
        let client = credential.map_or_else(|| client.clone(), |credential| client.with(credential.clone()));
        client.get(path).await.expect("nodes that run answer").status
    }

    /// How a node answers three questions: whether the auditor may read what is cached, whether it may have something
    /// fetched, and whether the upstream of a later kind is asked for anything.
    async fn grants(&self, number: usize, image: &str) -> [u16; 3] {
        self.upstream.publish_image(image, "v1", &[images::random_bytes(2, 1000)]);
        let (cached, cold) = (format!("/v2/{}/manifests/v1", hot(0)), "/v2/demo/never-pulled/manifests/v1");
        let read = self.status(number, Some(&self.auditor), &cached).await;
        let fetched = self.status(number, Some(&self.auditor), cold).await;
        let asked = self.status(number, None, &format!("/v2/later/{image}/manifests/v1")).await;
        [read, fetched, asked].map(|status| status.as_u16())
    }

    /// A node of this release lets nobody in whom it does not understand, and asks no upstream that it does not
    /// understand; it serves what is cached of that.
    async fn assert_closed(&self, number: usize, stage: &str) {
        assert_eq!(self.grants(number, &format!("closed-{number}-{stage}")).await, [401, 401, 503], "{stage}");
        assert_eq!(self.status(number, None, "/v2/later/cached/manifests/v1").await, 200, "{stage}");
    }

    /// The ids of events that wait in the store for a control plane of the later release.
    async fn waiting(&self) -> Result<BTreeSet<String>> {
        let mut ids = BTreeSet::new();
        for node in &self.cluster.nodes {
            for key in self.keys(&layout::events_prefix(&node.name().parse()?)).await? {
                // It may have been delivered meanwhile.
                let Some(object) = self.store.get(&key).await? else { continue };
                for event in wire::ReportEventsRequest::decode(object.bytes)?.events {
                    if matches!(Event::read("event", &event), Err(Unread::Unknown { .. })) {
                        ids.insert(wire::Event::decode(event)?.event_id);
                    }
                }
            }
        }
        Ok(ids)
    }

    /// The ids of all events that were applied.
    fn applied(&self) -> BTreeSet<String> {
        self.cluster.sql("SELECT event_id FROM events").lines().map(str::to_owned).collect()
    }

    /// Waits until events wait for the later release, while the load goes on.
    async fn until_events_wait(&self) -> Result<BTreeSet<String>> {
        self.cluster.until("events wait", async || self.waiting().await.is_ok_and(|ids| ids.len() > 10)).await;
        let waiting = self.waiting().await?;
        let applied = self.applied();
        assert!(waiting.is_disjoint(&applied), "this release has taken what it does not know");
        Ok(waiting)
    }

    async fn until_applied(&self, ids: &BTreeSet<String>) {
        wait_until(OFFERED, "what has waited is applied", async || ids.is_subset(&self.applied())).await;
    }

    async fn keys(&self, prefix: &Prefix) -> Result<Vec<Key>> {
        let (mut keys, mut after) = (Vec::new(), None);
        loop {
            let page = self.store.list(prefix, after.as_ref(), 1000).await?;
            let is_last = page.len() < 1000;
            keys.extend(page.into_iter().map(|entry| entry.key));
            after = keys.last().cloned();
            if is_last {
                return Ok(keys);
            }
        }
    }

    async fn marked(&self) -> Result<Marked> {
        let mut marked = Marked::new();
        for key in self.keys(&Prefix::below("repositories/demo/hot")?).await? {
            let Some(object) = self.store.get(&key).await? else { continue };
            let record: serde_json::Value = serde_json::from_slice(&object.bytes)?;
            if record[future::RECORD_FIELD] == true {
                marked.insert(key, record["write"].as_str().context("records have write ids")?.to_owned());
            }
        }
        Ok(marked)
    }

    /// Whether the published snapshot has the later release's field.
    async fn has_label(&self) -> Result<bool> {
        let head = self.store.get(&layout::snapshot_head()).await?.context("a snapshot is published")?;
        let head: SnapshotHead = serde_json::from_slice(&head.bytes)?;
        let snapshot = self.store.get(&head.key).await?.context("the head names an object")?.bytes;
        let label = future::RULE_LABEL.as_bytes();
        Ok(snapshot.windows(label.len()).any(|bytes| bytes == label))
    }
}

fn lost<'m>(before: &'m Marked, after: &Marked) -> Vec<&'m Key> {
    before.keys().filter(|key| !after.contains_key(*key)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it needs the programs that play a later release: scripts/suite releases"]
async fn a_fleet_that_is_upgraded_and_rolled_back_fails_no_pull_loses_nothing_and_opens_nothing() -> Result<()> {
    let setup = Setup { drain_notice: NOTICE, company: Company::Alone, ..Setup::default() };
    let Some(cluster) = Cluster::start_with(setup).await? else { return Ok(()) };
    let (fleet, begun) = (Fleet::start(cluster).await?, Instant::now());
    fleet.load.heat(0).await?;
    fleet.load.until_it_has_gone_on().await;
    for number in [0, 1] {
        fleet.assert_closed(number, "before").await;
    }

    fleet.upgrade().await?;
    let marked = fleet.use_what_is_new().await?;
    let waiting = fleet.roll_back().await?;
    fleet.rewrite().await?;
    assert_eq!(lost(&marked, &fleet.marked().await?), Vec::<&Key>::new(), "fields of the later release are lost");
    let still = fleet.waiting().await?;
    assert!(waiting.is_subset(&still), "events are gone that nobody has applied");

    fleet.run_control_plane(0, &fleet.later).await;
    fleet.until_applied(&still).await;
    wait_until(OFFERED, "no event waits", async || fleet.waiting().await.is_ok_and(|ids| ids.is_empty())).await;
    report("events that waited until a control plane of the later release came again", still.len());
    assert_eq!(lost(&marked, &fleet.marked().await?), Vec::<&Key>::new());

    let pulled = fleet.load.end().await?;
    fleet.until_listed(&pulled).await;
    let [pulls, calls, retries] =
        [&fleet.load.pulls, &fleet.load.calls, &fleet.load.retries].map(|counter| counter.load(Ordering::Relaxed));
    let counts = format!("{pulls} pulls of {} images, {calls} calls ({retries} repeated)", pulled.len());
    report(
        "without a failure while the fleet was upgraded and rolled back",
        format!("{counts}, {:?}", begun.elapsed()),
    );
    Ok(())
}

impl Fleet {
    /// A node comes first: what only it knows waits, and the control planes of this release open nothing.
    async fn upgrade(&self) -> Result<()> {
        self.run_node(0, &self.later).await;
        let waiting = self.until_events_wait().await?;
        self.assert_closed(1, "first").await;
        let cached = format!("/v2/{}/manifests/v1", hot(0));
        assert_eq!(self.status(0, Some(&self.auditor), &cached).await, 403, "nobody has said what an auditor may do");
        self.run_control_plane(0, &self.later).await;
        self.until_applied(&waiting).await;
        report("events that waited for the first control plane of the later release", waiting.len());
        self.assert_closed(1, "mixed").await;
        self.run_node(1, &self.later).await;
        self.run_control_plane(1, &self.later).await;
        Ok(())
    }

    /// All are of the later release.
    async fn use_what_is_new(&self) -> Result<Marked> {
        for number in [0, 1] {
            let image = format!("open-{number}");
            let is_granted = async || self.grants(number, &image).await == [200, 403, 200];
            self.cluster.until("what is new is used", is_granted).await;
        }
        self.cluster.until("a snapshot has the new field", async || self.has_label().await.is_ok_and(|has| has)).await;
        for number in 1..HOT {
            self.load.heat(number % 2).await?;
        }
        self.load.until_it_has_gone_on().await;
        let marked = self.marked().await?;
        // Each repository itself, a manifest with its configuration and layer, and a tag.
        assert_eq!(marked.len(), 5 * (HOT - 1), "{marked:#?}");
        Ok(marked)
    }

    /// The last node of the later release has no control plane that knows what it says; what it has said stays when the
    /// node, too, is of this release again.
    async fn roll_back(&self) -> Result<BTreeSet<String>> {
        self.run_control_plane(1, &self.this).await;
        self.run_node(0, &self.this).await;
        self.assert_closed(0, "rolled-back").await;
        self.run_control_plane(0, &self.this).await;
        let waiting = self.until_events_wait().await?;
        self.run_node(1, &self.this).await;
        for number in [0, 1] {
            self.assert_closed(number, "again").await;
        }
        Ok(waiting)
    }

    /// All are of this release, so all records are written by it: tags where they are confirmed, repositories by the API.
    async fn rewrite(&self) -> Result<()> {
        let before = self.marked().await?;
        for number in 1..HOT {
            let name = format!("repositories/{}", hot(number));
            let automatic_sync = pb::AutomaticSync::Off.into();
            let repository = pb::Repository { name, automatic_sync, ..Default::default() };
            let update_mask = Some(prost_types::FieldMask { paths: vec!["automatic_sync".to_owned()] });
            let request = pb::UpdateRepositoryRequest { repository: Some(repository), update_mask };
            self.cluster.balanced_api().repositories().update_repository(request).await?;
        }
        let rewritten = async || -> Result<usize> {
            let now = self.marked().await?;
            Ok(before.iter().filter(|(key, write)| now.get(*key) != Some(write)).count())
        };
        let all = 2 * (HOT - 1);
        self.cluster.until("records are rewritten", async || rewritten().await.is_ok_and(|count| count >= all)).await;
        report("records that were rewritten with the field that this release does not know", rewritten().await?);
        Ok(())
    }

    async fn until_listed(&self, pulled: &BTreeSet<String>) {
        for control_plane in &self.cluster.control_planes {
            let api = self.cluster.api_of(control_plane);
            let is_listed = async || {
                let listed = api.repository_names().await.unwrap_or_default();
                pulled.is_subset(&listed.into_iter().collect())
            };
            self.cluster.until("all that was pulled is listed", is_listed).await;
        }
    }
}
