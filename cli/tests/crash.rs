//! `kill -9` of `entrepot up`: whatever was answered is complete, nothing is visible in part, and the rest is filled
//! later.
//!
//! The moment of the kill is a number of answers, not of seconds, and depends on a seed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "shared/registry.rs"]
mod registry;
#[path = "crash/store.rs"]
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use registry::{KEY, LIMIT, Registry, passable, processes_in};
use store::StoreFolder;

const ROUNDS: u64 = 12;
const SEED: u64 = 0x5eed;
const MIB: usize = 1 << 20;

/// Something that clients request, and what they must get.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Content {
    path: String,
    digest: String,
}

/// An image of the upstream, as clients of the registry see it.
#[derive(Clone, Debug)]
struct Image {
    repository: String,
    tag: String,
    digest: String,
    /// Requested one after the other: the manifest by its tag, then those that it lists.
    manifests: Vec<Content>,
    /// Requested all at once after that.
    blobs: Vec<Content>,
}

impl Image {
    fn of(name: &str, tag: &str, digest: &str, platforms: &[images::Image]) -> Self {
        let repository = format!("demo/{name}");
        let at = |kind: &str, reference: &str, digest: &str| Content {
            path: format!("/v2/{repository}/{kind}/{reference}"),
            digest: digest.to_owned(),
        };
        let listed = platforms.iter().filter(|image| image.manifest != digest);
        let listed = listed.map(|image| at("manifests", &image.manifest, &image.manifest));
        let manifests = std::iter::once(at("manifests", tag, digest)).chain(listed).collect();
        let blobs = platforms.iter().flat_map(images::Image::blobs).map(|blob| at("blobs", blob, blob)).collect();
        Self { tag: tag.to_owned(), digest: digest.to_owned(), manifests, blobs, repository }
    }

    /// Publishes an image with these layers.
    fn publish(upstream: &FakeUpstream, name: &str, tag: &str, layers: &[Vec<u8>]) -> Self {
        let image = upstream.publish_image(name, tag, layers);
        Self::of(name, tag, &image.manifest.clone(), &[image])
    }

    /// Publishes an index of images with one layer each.
    fn publish_index(upstream: &FakeUpstream, name: &str, tag: &str, layers: [Vec<u8>; 2]) -> Self {
        const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];
        let platforms = PLATFORMS.iter().zip(layers);
        let platforms = platforms.map(|(platform, layer)| upstream.publish_image_for(name, None, platform, &[layer]));
        let platforms: Vec<_> = platforms.collect();
        let index = images::index(&PLATFORMS, &platforms);
        let digest = upstream.publish_manifest(name, Some(tag), images::OCI_INDEX, index);
        Self::of(name, tag, &digest, &platforms)
    }

    fn contents(&self) -> impl Iterator<Item = &Content> {
        self.manifests.iter().chain(&self.blobs)
    }
}

/// The content of an answer.
struct Answer {
    digest: String,
    bytes: Vec<u8>,
}

impl Answer {
    fn assert_is(&self, content: &Content) {
        assert_eq!(
            (&self.digest, &images::sha256(&self.bytes)),
            (&content.digest, &content.digest),
            "{}",
            content.path
        );
    }
}

/// A client of one run of the registry.
#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    fn of(registry: &Registry) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
        Self { http, url: format!("http://{}", registry.told("registry")) }
    }

    /// Reads an answer to its last byte.
    async fn read(&self, content: &Content) -> reqwest::Result<Answer> {
        let (user, secret) = KEY.split_once(':').unwrap();
        let request = self.http.get(format!("{}{}", self.url, content.path)).basic_auth(user, Some(secret));
        let response = request.send().await?.error_for_status()?;
        let digest = response.headers()["docker-content-digest"].to_str().unwrap().to_owned();
        Ok(Answer { digest, bytes: response.bytes().await?.into() })
    }

    /// Requests something, and checks that it is right.
    async fn get(&self, content: &Content) -> reqwest::Result<()> {
        self.read(content).await?.assert_is(content);
        Ok(())
    }

    /// Pulls a whole image, and reports everything that has arrived. It ends at the first failure, after all other
    /// requests under way have ended.
    async fn pull(self, image: Image, arrived: mpsc::UnboundedSender<Content>) -> reqwest::Result<()> {
        for manifest in image.manifests {
            self.get(&manifest).await?;
            let _ = arrived.send(manifest);
        }
        let mut blobs = JoinSet::new();
        for blob in image.blobs {
            let (client, arrived) = (self.clone(), arrived.clone());
            blobs.spawn(async move {
                client.get(&blob).await?;
                let _ = arrived.send(blob);
                Ok(())
            });
        }
        blobs.join_all().await.into_iter().collect()
    }
}

/// The moment at which to kill the registry.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// When this many contents have arrived at clients.
    Arrived(usize),
    /// When the upstream has begun to answer this many requests: what it sends is on its way into the store.
    Fetched(usize),
    /// When this many records are in the store: the next one is being written.
    Recorded(usize),
}

impl Moment {
    /// A moment in the round, before all but one of its contents have arrived.
    fn of(round: u64, random: u8, content_count: usize) -> Self {
        let up_to = |limit: usize| 1 + usize::from(random) % limit;
        match round % 3 {
            0 => Self::Arrived(up_to(content_count - 1)),
            1 => Self::Fetched(up_to(content_count - 1)),
            // Manifests come first, and need the most records each.
            _ => Self::Recorded(up_to(16)),
        }
    }
}

/// New images in three repositories. One layer is shared by all, one is slow, and one is cut short.
fn publish(upstream: &FakeUpstream, round: u64) -> Vec<Image> {
    let layer = |number: u64, len: usize| images::random_bytes(round << 16 | number, len);
    let (shared, slow, stalled) = (layer(0, 3 * MIB / 2), layer(1, 3 * MIB), layer(2, 9 * MIB));
    let name = |name: &str| format!("round-{round}/{name}");
    upstream.heal();
    upstream.script(images::sha256(&shared), Fault::Rate(6 << 20));
    upstream.script(images::sha256(&slow), Fault::Rate(4 << 20));
    upstream.script(images::sha256(&stalled), Fault::StallAfter(9 * (1 << 20) - 1));
    let small: Vec<_> = (10..18).map(|number| layer(number, 30_000)).collect();
    vec![
        Image::publish(upstream, &name("a"), "v1", &[shared.clone(), layer(3, 100_000), layer(4, 1000)]),
        Image::publish(upstream, &name("a"), "v2", &[shared.clone(), slow]),
        Image::publish_index(upstream, &name("b"), "v1", [layer(5, 200_000), layer(6, MIB + 1)]),
        Image::publish(upstream, &name("b"), "v2", &small),
        Image::publish(upstream, &name("c"), "v1", &[shared.clone(), stalled]),
        Image::publish(upstream, &name("c"), "v2", &[shared, layer(7, 50_000)]),
    ]
}

/// Begins first pulls and kills the registry while they run. Returns what had arrived.
async fn killed_in_first_pulls(
    registry: Registry,
    store: &StoreFolder,
    upstream: &FakeUpstream,
    images: &[Image],
    moment: Moment,
) -> Vec<Content> {
    let (client, earlier) = (Client::of(&registry), upstream.request_count());
    let (sender, mut arrivals) = mpsc::unbounded_channel();
    let killed = Arc::new(AtomicBool::new(false));
    let mut pulls = JoinSet::new();
    for image in images {
        let (pull, killed) = (client.clone().pull(image.clone(), sender.clone()), killed.clone());
        pulls.spawn(async move {
            let pulled = pull.await;
            assert!(pulled.is_ok() || killed.load(Ordering::SeqCst), "{pulled:?}");
        });
    }
    drop(sender);
    let mut arrived = vec![];
    let records = format!("repositories/{}", images[0].repository.rsplit_once('/').unwrap().0);
    let deadline = Instant::now() + LIMIT;
    loop {
        arrived.extend(std::iter::from_fn(|| arrivals.try_recv().ok()));
        let come = match moment {
            Moment::Arrived(count) => arrived.len() >= count,
            Moment::Fetched(count) => {
                upstream.log()[earlier..].iter().filter(|entry| entry.status == 200).count() >= count
            }
            Moment::Recorded(count) => store.keys(&records).len() >= count,
        };
        if come {
            break;
        }
        assert!(Instant::now() < deadline, "{moment:?} does not come");
        // A short pause, so that the kill comes close to the moment.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    killed.store(true, Ordering::SeqCst);
    registry.kill();
    // Everything that had been sent is read to its end.
    timeout(LIMIT, pulls.join_all()).await.unwrap();
    while let Some(content) = arrivals.recv().await {
        arrived.push(content);
    }
    arrived
}

/// The images that the registry lists in a repository: the digest, and the joined tags.
fn listed(registry: &Registry, repository: &str) -> Vec<(String, String)> {
    let output = registry.run(&format!("entrepot image list {repository} --output json"));
    if !output.status.success() {
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(repository), "{error}");
        return vec![];
    }
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let image = |image: &Value| {
        let tags: Vec<_> = image["tags"].as_array().unwrap().iter().map(|tag| tag["tag"].as_str().unwrap()).collect();
        (image["digest"].as_str().unwrap().to_owned(), tags.join(" "))
    };
    let mut images: Vec<_> = list["images"].as_array().unwrap().iter().map(image).collect();
    images.sort_unstable();
    images
}

fn repository_names(registry: &Registry) -> Vec<String> {
    let list = registry.json("entrepot repository list --output json");
    let name =
        |repository: &Value| repository["name"].as_str().unwrap().strip_prefix("repositories/").unwrap().to_owned();
    list["repositories"].as_array().unwrap().iter().map(name).collect()
}

/// Waits until exactly these images are listed, each once.
async fn until_all_are_listed(registry: &Registry, images: &[Image]) {
    let mut repositories: Vec<_> = images.iter().map(|image| image.repository.clone()).collect();
    repositories.sort_unstable();
    repositories.dedup();
    wait_until(LIMIT, "all repositories are listed", async || repository_names(registry) == repositories).await;
    for repository in repositories {
        let images = images.iter().filter(|image| image.repository == repository);
        let mut expected: Vec<_> = images.map(|image| (image.digest.clone(), image.tag.clone())).collect();
        expected.sort_unstable();
        let what = format!("the images of {repository} are listed");
        wait_until(LIMIT, &what, async || listed(registry, &repository) == expected).await;
    }
}

/// Starts a registry with a rule `demo` for the upstream.
fn first_start(data: &Path, upstream: &FakeUpstream) -> Registry {
    let registry = Registry::start(data, Some(KEY));
    let url = upstream.url();
    registry.text(&format!(
        "entrepot upstream create local --kind oci --endpoint {url} --allow-plain-http --allow-private-addresses"
    ));
    registry.text("entrepot rule create demo --upstream local");
    registry
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_of_first_pulls_leaves_only_whole_images() {
    let folder = passable();
    let data: PathBuf = folder.path().join("data");
    let (store, upstream) = (StoreFolder(data.join("store")), FakeUpstream::start().await);
    let mut registry = first_start(&data, &upstream);
    let randoms = images::random_bytes(SEED, usize::try_from(ROUNDS).unwrap());
    let (mut all, mut left_behind) = (vec![], 0);
    for (round, random) in (0..).zip(randoms) {
        let images = publish(&upstream, round);
        let total = images.iter().flat_map(Image::contents).count();
        let moment = Moment::of(round, random, total);
        let arrived = killed_in_first_pulls(registry, &store, &upstream, &images, moment).await;
        assert!(arrived.len() < total);
        wait_until(LIMIT, "Postgres ends with its parent", async || processes_in(&data) == 0).await;
        store.assert_whole();
        let leftovers = store.temporary_files();
        left_behind += leftovers.len();

        upstream.stop().await;
        registry = Registry::start(&data, Some(KEY));
        assert_eq!(store.temporary_files().intersection(&leftovers).count(), 0);
        assert_eq!(std::fs::read_dir(data.join("spool")).unwrap().count(), 0);
        wait_until(LIMIT, "all events are delivered", async || store.keys("events").is_empty()).await;
        store.assert_whole();
        let client = Client::of(&registry);
        for content in &arrived {
            let served = client.get(content).await;
            assert!(served.is_ok(), "round {round}, {moment:?}: {served:?}");
        }
        for image in images.iter().filter(|image| arrived.contains(&image.manifests[0])) {
            let expected = (image.digest.clone(), image.tag.clone());
            let what = format!("{}:{} is listed", image.repository, image.tag);
            wait_until(LIMIT, &what, async || listed(&registry, &image.repository).contains(&expected)).await;
        }

        upstream.heal();
        upstream.resume().await;
        for content in images.iter().flat_map(Image::contents) {
            client.get(content).await.unwrap();
        }
        all.extend(images);
        until_all_are_listed(&registry, &all).await;
    }
    assert_ne!(left_behind, 0, "no kill came while something was written");
    upstream.stop().await;
    let client = Client::of(&registry);
    for content in all.iter().flat_map(Image::contents) {
        client.get(content).await.unwrap();
    }
    registry.stop();
}

/// The part of an image that is pulled last; the process lives to send exactly its last byte.
#[derive(Clone, Copy, Debug)]
enum Last {
    /// As clients do.
    Blobs,
    /// The manifest by its tag, after a pull by digest.
    Tag,
    /// The index, after the manifests that it lists and their blobs.
    Index,
}

impl Last {
    fn publish(self, upstream: &FakeUpstream, round: u64) -> (Image, Vec<Content>) {
        let layer = |number: u64, len: usize| images::random_bytes(round << 16 | number, len);
        // One layer is verified before its first byte is sent, and the last bytes of the other one are held back.
        let layers = [layer(0, 2000), layer(1, 3 * MIB / 2)];
        let name = format!("round-{round:02}");
        let image = match self {
            Self::Blobs | Self::Tag => Image::publish(upstream, &name, "v1", &layers),
            Self::Index => Image::publish_index(upstream, &name, "v1", layers),
        };
        let (tag, children, blobs) = (&image.manifests[0], &image.manifests[1..], &image.blobs);
        let by_digest = Content { path: format!("/v2/{}/manifests/{}", image.repository, tag.digest), ..tag.clone() };
        let order = match self {
            Self::Blobs => [std::slice::from_ref(tag), blobs].concat(),
            Self::Tag => [&[by_digest], blobs.as_slice(), std::slice::from_ref(tag)].concat(),
            Self::Index => [children, blobs, std::slice::from_ref(tag)].concat(),
        };
        (image, order)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_listed_although_the_process_dies_the_moment_its_last_byte_arrives() {
    let folder = passable();
    let data = folder.path().join("data");
    let (store, upstream) = (StoreFolder(data.join("store")), FakeUpstream::start().await);
    let mut registry = first_start(&data, &upstream);
    let mut all = vec![];
    for (round, last) in (0..12).zip([Last::Blobs, Last::Tag, Last::Index].into_iter().cycle()) {
        let (image, contents) = last.publish(&upstream, round);
        let client = Client::of(&registry);
        let (end, before) = contents.split_last().unwrap();
        for content in before {
            client.get(content).await.unwrap();
        }
        let answer = client.read(end).await.unwrap();
        registry.kill();
        answer.assert_is(end);
        store.assert_whole();

        upstream.stop().await;
        registry = Registry::start(&data, Some(KEY));
        all.push(image);
        until_all_are_listed(&registry, &all).await;
        let client = Client::of(&registry);
        for content in all.iter().flat_map(Image::contents).chain(&contents) {
            let served = client.get(content).await;
            assert!(served.is_ok(), "round {round}, {last:?}: {served:?}");
        }
        upstream.resume().await;
    }
    registry.stop();
}
