//! A registry for tests: a real HTTP server that holds what is published to it, keeps a log, and follows a script of
//! faults that can be changed while it runs.
//!
//! It serves manifests and blobs with GET, HEAD and ranges, lists tags page by page, lists referrers, issues tokens at
//! `/token`, and does nothing else. It can be used outside of tests: a program that starts one and waits has an
//! upstream.

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
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
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

/// The path at which it reports its requests to anybody; requests to this path are not counted.
pub const REPORT_PATH: &str = "/_requests";

/// A scripted registry on this machine. Dropping it stops it.
pub struct FakeUpstream {
    core: Arc<Core>,
    address: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    server: Mutex<JoinSet<()>>,
}

/// The state that all its connections share.
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

    pub async fn start_at(address: SocketAddr) -> Self {
        Self::start_with(address, None).await
    }

    /// Starts one at a free port of 127.0.0.1 that uses TLS with a certificate of `authority`.
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

    /// Its host and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, such as `http://127.0.0.1:40001`.
    pub fn url(&self) -> String {
        self.core.base.clone()
    }

    /// Goes away: closes the listener and every connection. Content, script and log stay.
    pub async fn stop(&self) {
        let mut server = std::mem::take(&mut *self.server.lock());
        server.shutdown().await;
    }

    /// Comes back at the same address.
    pub async fn resume(&self) {
        let listener = TcpListener::bind(self.address).await;
        let listener = listener.unwrap_or_else(|error| panic!("{} is not free: {error}", self.address));
        *self.server.lock() = serve::start(listener, self.tls.clone(), self.core.clone());
    }

    /// Publishes a blob, and returns its digest.
    pub fn publish_blob(&self, repository: &str, bytes: impl AsRef<[u8]>) -> String {
        self.core.content.lock().put_blob(repository, Bytes::copy_from_slice(bytes.as_ref()))
    }

    /// Publishes a manifest, moves `tag` to it if given, and returns its digest.
    pub fn publish_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl AsRef<[u8]>,
    ) -> String {
        let bytes = Bytes::copy_from_slice(bytes.as_ref());
        self.core.content.lock().put_manifest(repository, tag, media_type, bytes)
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

    /// Publishes an artifact of this type that refers to another manifest, such as its signature, and returns its
    /// digest.
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

    /// Publishes everything that `other` has now, so that redirects can lead from there to here.
    pub fn publish_all_of(&self, other: &Self) {
        let content = other.core.content.lock().clone();
        *self.core.content.lock() = content;
    }

    /// Deletes the tag, manifest or blob with this name.
    pub fn remove(&self, repository: &str, name: &str) {
        self.core.content.lock().remove(repository, name);
    }

    /// From now on, lists at most this many tags on a page, whatever is requested.
    pub fn set_tags_page(&self, count: usize) {
        self.core.content.lock().tags_page = count;
    }

    /// From now on, supports the referrers API or not. Without support, the path does not exist.
    pub fn set_referrers_api(&self, is_known: bool) {
        self.core.content.lock().hides_referrers = !is_known;
    }

    /// From now on, limits how many manifests may be fetched in a window, and tells with each answer about a manifest
    /// what is left, like Docker Hub. HEAD requests and all other requests are free.
    pub fn set_limit(&self, requests: u64, window: Duration) {
        self.core.limit.lock().set(requests, window);
    }

    /// Uses up a part of the limit, as if by others with the same account.
    pub fn take_of_limit(&self, requests: u64) {
        self.core.limit.lock().take(requests);
    }

    /// How many requests so far would have counted at Docker Hub.
    pub fn counted_requests(&self) -> usize {
        self.core.limit.lock().counted()
    }

    /// Sets who may pull. Tokens that were issued before become invalid.
    pub fn set_auth(&self, auth: Auth) {
        let mut tokens = self.core.tokens.lock();
        tokens.auth = auth;
        tokens.revoke();
    }

    /// Names another realm in challenges, instead of its own `/token`.
    pub fn set_realm(&self, realm: impl Into<String>) {
        self.core.tokens.lock().realm = Some(realm.into());
    }

    /// Sends exactly this challenge; if it is empty, the header is left out.
    pub fn set_challenge(&self, challenge: impl Into<String>) {
        self.core.tokens.lock().challenge = Some(challenge.into());
    }

    /// Sets `expires_in` in answers with tokens from now on. Tokens never expire by themselves: revoke them.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.core.tokens.lock().lifetime = lifetime;
    }

    /// Refuses all tokens that were issued so far.
    pub fn revoke_tokens(&self) {
        self.core.tokens.lock().revoke();
    }

    /// Plays `fault` in every request whose `METHOD path` contains `pattern`, such as `GET
    /// /v2/demo/app/manifests/latest`, `HEAD `, `/blobs/` or a digest. Several faults are combined.
    pub fn script(&self, pattern: impl Into<String>, fault: Fault) {
        self.script_times(pattern, fault, usize::MAX);
    }

    /// Plays `fault` in the next `times` requests that `pattern` matches.
    pub fn script_times(&self, pattern: impl Into<String>, fault: Fault, times: usize) {
        self.core.script.lock().add(pattern.into(), fault, times);
    }

    /// Plays faults in this percentage of all requests, in addition to the script. The seed decides which request gets
    /// which fault; the same requests get the same faults again.
    pub fn chaos(&self, seed: u64, percent: u8) {
        self.chaos_in("", seed, percent);
    }

    /// As [`FakeUpstream::chaos`], in requests that `pattern` matches.
    pub fn chaos_in(&self, pattern: impl Into<String>, seed: u64, percent: u8) {
        self.core.script.lock().chaos = Some((pattern.into(), Chaos::new(seed, percent)));
    }

    /// Holds back the answers to requests that `pattern` matches, until the gate is released or dropped.
    pub fn hold(&self, pattern: impl Into<String>) -> Gate {
        self.core.script.lock().hold(pattern.into())
    }

    /// Clears the script. Gates stay.
    pub fn heal(&self) {
        self.core.script.lock().clear();
    }

    /// All requests so far, in the order in which they came.
    pub fn log(&self) -> Vec<LogEntry> {
        self.core.log.entries()
    }

    /// For each method and path, the number of requests, the bytes sent, and the statuses: the JSON that is also served
    /// at [`REPORT_PATH`].
    pub fn report(&self) -> serde_json::Value {
        self.core.log.report()
    }

    /// How many requests there were, including those for tokens.
    pub fn request_count(&self) -> usize {
        self.core.log.count(|_| true)
    }

    /// How often something was fetched: GETs whose path ends with `what` (a whole path, a digest, or `manifests/<tag>`)
    /// and that were answered with content, or have not been answered yet.
    pub fn fetches_of(&self, what: &str) -> usize {
        self.core.log.count(|entry| entry.method == "GET" && entry.is_fetch() && entry.path.ends_with(what))
    }

    /// How often a token was requested.
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
