//! A registry for tests: a real HTTP server that holds what is published to it, keeps a log, and follows a script of
//! faults that can be changed while it runs.
//!
//! It serves manifests and blobs with GET, HEAD and ranges, lists tags page by page, says what refers to a manifest, gives out tokens at `/token`, and
//! nothing else. It wants no test around it: a program that starts one and waits has an upstream.

mod answer;
mod auth;
mod body;
mod chaos;
mod content;
mod limit;
mod log;
mod script;
mod serve;
mod wire;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use auth::Auth;
pub use log::LogEntry;
pub use script::{Fault, Gate};

use crate::images::{self, Image, Index};
use crate::tls::Authority;
use auth::Tokens;
use chaos::Chaos;
use content::Content;
use limit::Limit;
use log::Log;
use script::Script;

/// Where it tells what it was asked, to whoever asks; that itself is not counted.
pub const REPORT_PATH: &str = "/_requests";

/// A scripted registry on this machine. Dropping it stops it.
pub struct FakeUpstream {
    core: Arc<Core>,
    address: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    server: Mutex<JoinSet<()>>,
}

/// What all its connections share.
struct Core {
    base: String,
    content: Mutex<Content>,
    script: Mutex<Script>,
    tokens: Mutex<Tokens>,
    limit: Mutex<Limit>,
    log: Log,
}

impl FakeUpstream {
    /// Starts one at a free port of 127.0.0.1.
    pub async fn start() -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts one at `address`.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::start_with(address, None).await
    }

    /// Starts one at a free port of 127.0.0.1 that speaks TLS with a certificate of `authority`.
    pub async fn start_tls(authority: &Authority) -> Self {
        Self::start_with(SocketAddr::from(([127, 0, 0, 1], 0)), Some(authority.server_config())).await
    }

    async fn start_with(address: SocketAddr, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener =
            TcpListener::bind(address).await.unwrap_or_else(|error| panic!("{address} is not free: {error}"));
        let address = listener.local_addr().expect("a listener has an address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let core = Arc::new(Core {
            base: format!("{scheme}://{address}"),
            content: Mutex::default(),
            script: Mutex::default(),
            tokens: Mutex::default(),
            limit: Mutex::default(),
            log: Log::default(),
        });
        let server = Mutex::new(serve::start(listener, tls.clone(), core.clone()));
        Self { core, address, tls, server }
    }

    /// Where it is: host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it is, such as `http://127.0.0.1:40001`.
    pub fn url(&self) -> String {
        self.core.base.clone()
    }

    /// Goes away: closes the listener and every connection. Content, script and log stay.
    pub async fn stop(&self) {
        let mut server = std::mem::take(&mut *lock(&self.server));
        server.shutdown().await;
    }

    /// Comes back at the same address.
    pub async fn resume(&self) {
        let listener = TcpListener::bind(self.address).await;
        let listener = listener.unwrap_or_else(|error| panic!("{} is not free: {error}", self.address));
        *lock(&self.server) = serve::start(listener, self.tls.clone(), self.core.clone());
    }

    /// Publishes a blob and says its digest.
    pub fn publish_blob(&self, repository: &str, bytes: impl AsRef<[u8]>) -> String {
        lock(&self.core.content).put_blob(repository, Bytes::copy_from_slice(bytes.as_ref()))
    }

    /// Publishes a manifest, moves `tag` to it if there is one, and says its digest.
    pub fn publish_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl AsRef<[u8]>,
    ) -> String {
        let bytes = Bytes::copy_from_slice(bytes.as_ref());
        lock(&self.core.content).put_manifest(repository, tag, media_type, bytes)
    }

    /// Publishes an image for `linux/amd64` with these layers.
    pub fn publish_image(&self, repository: &str, tag: &str, layers: &[Vec<u8>]) -> Image {
        self.publish_image_for(repository, Some(tag), "linux/amd64", layers)
    }

    /// Publishes an image for a platform such as `linux/arm64/v8`.
    pub fn publish_image_for(&self, repository: &str, tag: Option<&str>, platform: &str, layers: &[Vec<u8>]) -> Image {
        let config = images::config(platform, layers);
        let manifest_bytes = Bytes::from(images::manifest(&config, layers));
        Image {
            manifest: self.publish_manifest(repository, tag, images::OCI_MANIFEST, &manifest_bytes),
            manifest_bytes,
            media_type: images::OCI_MANIFEST.to_owned(),
            config: self.publish_blob(repository, config),
            layers: layers.iter().map(|layer| self.publish_blob(repository, layer)).collect(),
        }
    }

    /// Publishes one small image per platform, and an index of them under `tag`.
    pub fn publish_index(&self, repository: &str, tag: &str, platforms: &[&str]) -> Index {
        let child = |(seed, platform): (u64, &&str)| {
            self.publish_image_for(repository, None, platform, &[images::random_bytes(seed, 1000)])
        };
        let children: Vec<_> = (0..).zip(platforms).map(child).collect();
        let bytes = Bytes::from(images::index(platforms, &children));
        let digest = self.publish_manifest(repository, Some(tag), images::OCI_INDEX, &bytes);
        Index { digest, bytes, children }
    }

    /// Publishes an artifact of this type that refers to another manifest, such as its signature, and says its digest.
    pub fn publish_referrer(
        &self,
        repository: &str,
        tag: Option<&str>,
        subject: &[u8],
        artifact_type: &str,
        layer: &[u8],
    ) -> String {
        self.publish_blob(repository, images::EMPTY);
        self.publish_blob(repository, layer);
        let manifest = images::referrer(subject, artifact_type, layer);
        self.publish_manifest(repository, tag, images::OCI_MANIFEST, manifest)
    }

    /// Publishes all that `other` has by now, so that redirects can lead from there to here.
    pub fn publish_all_of(&self, other: &Self) {
        let content = lock(&other.core.content).clone();
        *lock(&self.core.content) = content;
    }

    /// Deletes a tag, a manifest or a blob, whichever has this name.
    pub fn remove(&self, repository: &str, name: &str) {
        lock(&self.core.content).remove(repository, name);
    }

    /// Lists at most so many tags in one page from now on, whatever is asked for.
    pub fn set_tags_page(&self, count: usize) {
        lock(&self.core.content).tags_page = count;
    }

    /// Says whether it knows the API for referrers from now on. One that does not has no such path.
    pub fn set_referrers_api(&self, is_known: bool) {
        lock(&self.core.content).hides_referrers = !is_known;
    }

    /// Lets so many manifests be fetched in a window from now on, and says with each answer about one what is left, as
    /// Docker Hub does. Looking at them is free, and so is all else.
    pub fn set_limit(&self, requests: u64, window: Duration) {
        lock(&self.core.limit).set(requests, window);
    }

    /// Has others with the same account take so many of the limit.
    pub fn take_of_limit(&self, requests: u64) {
        lock(&self.core.limit).take(requests);
    }

    /// How many requests would have counted at Docker Hub so far.
    pub fn counted_requests(&self) -> usize {
        lock(&self.core.limit).counted()
    }

    /// Sets who may pull. Tokens that were given out before are no longer good.
    pub fn set_auth(&self, auth: Auth) {
        let mut tokens = lock(&self.core.tokens);
        tokens.auth = auth;
        tokens.revoke();
    }

    /// Names another realm in challenges, instead of its own `/token`.
    pub fn set_realm(&self, realm: impl Into<String>) {
        lock(&self.core.tokens).realm = Some(realm.into());
    }

    /// Puts this challenge word for word; an empty one leaves the header out.
    pub fn set_challenge(&self, challenge: impl Into<String>) {
        lock(&self.core.tokens).challenge = Some(challenge.into());
    }

    /// What `expires_in` is in answers with tokens from now on. Tokens never expire by themselves: revoke them.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        lock(&self.core.tokens).lifetime = lifetime;
    }

    /// Refuses all tokens that were given out so far.
    pub fn revoke_tokens(&self) {
        lock(&self.core.tokens).revoke();
    }

    /// Plays `fault` in every request that `pattern` matches: one whose `METHOD path` contains it, such as
    /// `GET /v2/demo/app/manifests/latest`, `HEAD `, `/blobs/` or a digest. Several faults add up.
    pub fn script(&self, pattern: impl Into<String>, fault: Fault) {
        self.script_times(pattern, fault, usize::MAX);
    }

    /// Plays `fault` in the next `times` requests that `pattern` matches.
    pub fn script_times(&self, pattern: impl Into<String>, fault: Fault, times: usize) {
        lock(&self.core.script).add(pattern.into(), fault, times);
    }

    /// Plays faults in so many percent of all requests, beside what is scripted. The seed decides which request meets
    /// which fault; the same requests meet the same again.
    pub fn chaos(&self, seed: u64, percent: u8) {
        self.chaos_in("", seed, percent);
    }

    /// As [`FakeUpstream::chaos`], in requests that `pattern` matches.
    pub fn chaos_in(&self, pattern: impl Into<String>, seed: u64, percent: u8) {
        lock(&self.core.script).chaos = Some((pattern.into(), Chaos::new(seed, percent)));
    }

    /// Holds back the answers to requests that `pattern` matches until the gate is released or dropped.
    pub fn hold(&self, pattern: impl Into<String>) -> Gate {
        lock(&self.core.script).hold(pattern.into())
    }

    /// Forgets the script. Gates stay.
    pub fn heal(&self) {
        lock(&self.core.script).clear();
    }

    /// All requests so far, in the order in which they came.
    pub fn log(&self) -> Vec<LogEntry> {
        self.core.log.entries()
    }

    /// How many requests there were for each method and path, how many bytes they were sent, and what was answered: the
    /// JSON that is also served at [`REPORT_PATH`].
    pub fn report(&self) -> serde_json::Value {
        self.core.log.report()
    }

    /// How many requests there were, those for tokens included.
    pub fn request_count(&self) -> usize {
        self.core.log.count(|_| true)
    }

    /// How often something was fetched: GETs whose path ends with `what` (a whole path, a digest, or
    /// `manifests/<tag>`) and that were answered with content, or not answered yet.
    pub fn fetches_of(&self, what: &str) -> usize {
        self.core.log.count(|entry| entry.method == "GET" && entry.is_fetch() && entry.path.ends_with(what))
    }

    /// How often a token was asked for.
    pub fn token_requests(&self) -> usize {
        self.core.log.count(|entry| entry.path == auth::TOKEN_PATH)
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.core.log.connections()
    }
}

impl std::fmt::Debug for FakeUpstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeUpstream").field("url", &self.core.base).finish_non_exhaustive()
    }
}

/// A lock that a panicking test has left behind is as good as any other.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
