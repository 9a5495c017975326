//! The cluster of a run, what is published for it, and all that is asked of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use entrepot_test_support::{FakeUpstream, Image, images};
use futures_util::future::join_all;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::history::{Answer, Call, Effect, History, Said, Source, Span, Subject, Version};
use super::{BRISK, FLUX, NODES, STEADY};
use crate::client::{Answer as Response, Client, Credential, send};
use crate::cluster::Cluster;
use crate::dice::Dice;

/// How long somebody waits for an answer: a node may be paused.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many subjects each rule has, in how many repositories.
const SUBJECTS: [(&str, usize, &[&str]); 3] = [(STEADY, 4, &["a", "b"]), (BRISK, 2, &["a"]), (FLUX, 2, &["a"])];

/// A run.
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) upstream: FakeUpstream,
    clients: Vec<Client>,
    began: Instant,
    history: Mutex<History>,
    /// How often each thing has happened, by its name.
    counts: Mutex<BTreeMap<String, usize>>,
    /// What has failed, for people.
    faults: Mutex<Vec<(String, Span)>>,
    /// Bodies that were something else than what they were called.
    wrong_bytes: Mutex<Vec<String>>,
    /// Requests that nobody waits for.
    behind: Mutex<JoinSet<()>>,
    images: Mutex<Dice>,
}

impl World {
    /// With rules and subjects, each published once.
    pub(super) async fn new(cluster: Cluster, seed: u64) -> Result<Self> {
        let api = cluster.api();
        let password = Credential::Password("AWS".to_owned(), api.login_token().await?);
        let clients = cluster.nodes.iter().map(|node| Client::of(&node.registry_url(), password.clone())).collect();
        let world = Self {
            cluster,
            upstream: FakeUpstream::start().await,
            clients,
            began: Instant::now(),
            history: Mutex::new(History { nodes: NODES, ..History::default() }),
            counts: Mutex::default(),
            faults: Mutex::default(),
            wrong_bytes: Mutex::default(),
            behind: Mutex::default(),
            images: Mutex::new(Dice(seed)),
        };
        for (rule, repositories, tags) in SUBJECTS {
            for number in 0..repositories {
                for tag in tags {
                    world.new_tag(rule, &format!("{rule}-{number}"), tag);
                }
            }
        }
        Ok(world)
    }

    /// How long the run has gone on.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Notes that something has happened.
    pub(super) fn count(&self, what: impl Into<String>) {
        *self.counts.lock().entry(what.into()).or_default() += 1;
    }

    /// How often everything has happened.
    pub(super) fn counts(&self) -> BTreeMap<String, usize> {
        self.counts.lock().clone()
    }

    /// Notes that something has failed since then.
    pub(super) fn failed(&self, what: String, begin: Duration) {
        self.faults.lock().push((what, Span { begin, end: self.now() }));
    }

    /// What has failed.
    pub(super) fn faults(&self) -> Vec<(String, Span)> {
        self.faults.lock().clone()
    }

    /// Bodies that were something else than what they were called.
    pub(super) fn wrong_bytes(&self) -> Vec<String> {
        self.wrong_bytes.lock().clone()
    }

    /// All that has gone on so far.
    pub(super) fn history(&self) -> History {
        self.history.lock().clone()
    }

    /// The subjects that are tags of a repository, or of all repositories of a rule.
    pub(super) fn tags_of(&self, rule: &str, repository: Option<&str>) -> Vec<usize> {
        let history = self.history.lock();
        let is_one = |subject: &Subject| {
            subject.rule == rule
                && !subject.reference.contains(':')
                && repository.is_none_or(|repository| subject.repository == repository)
        };
        let numbered = history.subjects.iter().enumerate();
        numbered.filter(|(_, subject)| is_one(subject)).map(|(number, _)| number).collect()
    }

    /// Where a subject is: its repository, and its tag or digest.
    pub(super) fn place_of(&self, subject: usize) -> (String, String) {
        let history = self.history.lock();
        let Subject { repository, reference, .. } = &history.subjects[subject];
        (repository.clone(), reference.clone())
    }

    /// The digests that a subject has meant, the newest last.
    pub(super) fn digests_of(&self, subject: usize) -> Vec<String> {
        let history = self.history.lock();
        history.subjects[subject].versions.iter().filter_map(|version| version.digest.clone()).collect()
    }

    /// A new tag, with a first version.
    pub(super) fn new_tag(&self, rule: &'static str, repository: &str, tag: &str) -> usize {
        let subject = self.new_subject(rule, repository, tag);
        self.move_on(subject);
        subject
    }

    /// A new image that is only known by its digest.
    pub(super) fn new_image(&self, rule: &'static str, repository: &str) -> usize {
        let begin = self.now();
        let image = self.publish(repository);
        let subject = self.new_subject(rule, repository, &image.manifest);
        let published = Span { begin, end: self.now() };
        let version = Version { digest: Some(image.manifest), published };
        self.history.lock().subjects[subject].versions.push(version);
        subject
    }

    fn new_subject(&self, rule: &'static str, repository: &str, reference: &str) -> usize {
        let (repository, reference) = (format!("{rule}/{repository}"), reference.to_owned());
        let mut history = self.history.lock();
        history.subjects.push(Subject { repository, reference, rule, versions: vec![] });
        history.subjects.len() - 1
    }

    /// An image that is new, and that no tag means.
    fn publish(&self, repository: &str) -> Image {
        let number = self.images.lock().below(usize::MAX).unwrap_or_default();
        let layer = images::random_bytes(number as u64, 300);
        self.upstream.publish_image_for(repository, None, "linux/amd64", &[layer])
    }

    /// Moves a tag at its upstream.
    pub(super) fn move_on(&self, subject: usize) {
        let (repository, tag) = self.place_of(subject);
        let repository = at_upstream(&repository);
        let image = self.publish(repository);
        // In one order for all: what is published later comes later.
        let mut history = self.history.lock();
        let begin = self.now();
        self.upstream.publish_manifest(repository, Some(&tag), &image.media_type, &image.manifest_bytes);
        let published = Span { begin, end: self.now() };
        history.subjects[subject].versions.push(Version { digest: Some(image.manifest), published });
    }

    /// Removes an image at its upstream.
    pub(super) fn remove(&self, subject: usize) {
        let (repository, digest) = self.place_of(subject);
        let mut history = self.history.lock();
        let begin = self.now();
        self.upstream.remove(at_upstream(&repository), &digest);
        let published = Span { begin, end: self.now() };
        history.subjects[subject].versions.push(Version { digest: None, published });
    }

    /// Notes that a call has returned which began then.
    pub(super) fn returned(&self, what: String, begin: Duration, effects: Vec<Effect>, lagging: &[usize]) {
        let span = Span { begin, end: self.now() };
        let call = |effect| Call { what: what.clone(), span, effect, lagging: lagging.to_vec() };
        self.history.lock().calls.extend(effects.into_iter().map(call));
    }

    /// Asks a node for a subject, and notes what it says. Returns the body of a manifest.
    pub(super) async fn ask(&self, node: usize, subject: usize, method: Method) -> Option<Bytes> {
        let (repository, reference) = self.place_of(subject);
        let path = format!("/v2/{repository}/manifests/{reference}");
        let begin = self.now();
        let answer = self.request(node, method.clone(), &path).await;
        let span = Span { begin, end: self.now() };
        let (said, body) = match answer {
            Some(answer) if answer.status == StatusCode::OK => {
                let digest = answer.header("docker-content-digest").unwrap_or_default().to_owned();
                if method == Method::GET {
                    self.check(&path, &digest, &answer.bytes);
                }
                (Said::Means(digest, source_of(&answer)), Some(answer.bytes))
            }
            Some(answer) if answer.status == StatusCode::NOT_FOUND => (Said::Absent, None),
            Some(_) | None => (Said::Nothing, None),
        };
        self.count(match &said {
            Said::Means(_, Source::Records) => "answers of the records",
            Said::Means(_, Source::StoreAway) => "answers while the store was away",
            Said::Means(_, Source::Upstream) => "answers of the upstream",
            Said::Absent => "answers that there is nothing",
            Said::Nothing => "requests without an answer",
        });
        self.history.lock().answers.push(Answer { node, subject, span, said });
        body
    }

    /// Asks a node for an image by a digest that a tag means, or has meant. It is right whenever its bytes are.
    pub(super) async fn ask_by_digest(&self, node: usize, subject: usize, digest: &str) {
        let (repository, _) = self.place_of(subject);
        self.ask_for_content(node, &format!("/v2/{repository}/manifests/{digest}"), digest).await;
    }

    /// Pulls what a subject means, and all that it consists of.
    pub(super) async fn pull(&self, node: usize, subject: usize) {
        let Some(manifest) = self.ask(node, subject, Method::GET).await else { return };
        let (repository, _) = self.place_of(subject);
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let blobs = [&manifest["config"]].into_iter().chain(layers).filter_map(|blob| blob["digest"].as_str());
        for digest in blobs {
            self.ask_for_content(node, &format!("/v2/{repository}/blobs/{digest}"), digest).await;
        }
    }

    async fn ask_for_content(&self, node: usize, path: &str, digest: &str) {
        let answer = self.request(node, Method::GET, path).await;
        if let Some(answer) = answer.filter(|answer| answer.status == StatusCode::OK) {
            self.check(path, digest, &answer.bytes);
            self.count("answers with content");
        }
    }

    fn check(&self, path: &str, digest: &str, bytes: &[u8]) {
        let is = images::sha256(bytes);
        if is != digest {
            self.wrong_bytes.lock().push(format!("GET {path}: the body is {is} and not {digest}"));
        }
    }

    async fn request(&self, node: usize, method: Method, path: &str) -> Option<Response> {
        let request = send(self.clients[node].request(method, path));
        let answer = timeout(PATIENCE, request).await.ok()?.ok()?;
        if !matches!(answer.status, StatusCode::OK | StatusCode::NOT_FOUND) {
            self.count(format!("answers with {}", answer.status.as_u16()));
        }
        Some(answer)
    }

    /// Has every node asked for subjects at once; nobody waits for that.
    pub(super) fn ask_behind(self: &Arc<Self>, subjects: &[usize]) {
        let mut behind = self.behind.lock();
        while behind.try_join_next().is_some() {}
        for node in 0..NODES {
            for subject in subjects.iter().copied() {
                let world = self.clone();
                behind.spawn(async move { drop(world.ask(node, subject, Method::GET).await) });
            }
        }
    }

    /// Waits until all requests have ended that nobody waits for.
    pub(super) async fn settle(&self) {
        let behind = std::mem::take(&mut *self.behind.lock());
        behind.join_all().await;
    }

    /// What all nodes say that a subject means, if they agree.
    pub(super) async fn agreed(&self, subject: usize) -> Option<String> {
        join_all((0..NODES).map(|node| self.ask(node, subject, Method::GET))).await;
        let history = self.history.lock();
        let mut said = history.answers.iter().rev().filter(|answer| answer.subject == subject).take(NODES);
        let Said::Means(first, Source::Records) = &said.next()?.said else { return None };
        let all = said.all(|answer| matches!(&answer.said, Said::Means(digest, Source::Records) if digest == first));
        all.then(|| first.clone())
    }
}

/// The same repository at the upstream.
fn at_upstream(repository: &str) -> &str {
    repository.split_once('/').map_or(repository, |(_, rest)| rest)
}

fn source_of(answer: &Response) -> Source {
    let how = answer.header("cache-status").unwrap_or_default();
    match how {
        how if how.contains("detail=store-away") => Source::StoreAway,
        how if how.starts_with("entrepot; hit") || how.ends_with("; stored") => Source::Records,
        _ => Source::Upstream,
    }
}
