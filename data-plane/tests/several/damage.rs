//! Objects of the store that are damaged, where nothing brings their content anew: it takes two nodes to set one aside.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use entrepot_data_plane::DamageTimes;
use entrepot_domain::{Digest, ResourceId, Secret};
use entrepot_records::{self as records, DamageRecord, PointerState, layout, pointer};
use entrepot_store::bucket::{AccessKey, BucketConfig, BucketStore, Service};
use entrepot_store::{
    Abilities, BlobStore, ByteStream, Deleted, Entry, Error, Key, Object, Prefix, Store, Upload, Version,
};
use entrepot_test_support::{Seaweed, images, wait_until};
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::StatusCode;
use uuid::Uuid;

use crate::fixture::{Fixture, LIMIT, Node};

const MIB: usize = 1 << 20;
/// Nodes look often, and keep what they set aside.
const OFTEN: DamageTimes =
    DamageTimes { look: Duration::from_millis(100), kept: Duration::from_secs(7 * 24 * 60 * 60) };
/// Nodes look only at what they find themselves.
const NEVER: DamageTimes = DamageTimes { look: Duration::from_secs(3600), ..OFTEN };

/// What the pointer of a digest says, and what nodes have found in the object that it names or named.
async fn found(store: &Store, digest: &str) -> (PointerState, Key, Option<DamageRecord>) {
    let digest: Digest = digest.parse().unwrap();
    let record = pointer::read(&**store, &digest).await.unwrap().record().cloned().unwrap();
    let (state, object) = (record.state.known().unwrap(), record.object.unwrap());
    let id: Uuid = object.as_str().rsplit('/').next().unwrap().parse().unwrap();
    let damage = records::read::<DamageRecord>(&**store, &layout::damage(id)).await.unwrap();
    (state, object, damage.map(|(record, _)| record))
}

/// Waits until so many nodes have read the object of a digest wrong, and so many right.
async fn until_said(store: &Store, digest: &str, wrong: usize, right: usize) -> DamageRecord {
    wait_until(LIMIT, &format!("{wrong} nodes read it wrong, {right} right"), async || {
        let said = found(store, digest).await.2;
        said.is_some_and(|said| (said.wrong_for.len(), said.right_for.len()) == (wrong, right))
    })
    .await;
    found(store, digest).await.2.unwrap()
}

/// An image that two nodes have cached, and that its upstream has no more; its layers have these sizes.
async fn cached(fixture: &Fixture, nodes: &[&Node], sizes: &[usize]) -> Vec<String> {
    let layers: Vec<_> = (0..).zip(sizes).map(|(seed, size)| images::random_bytes(seed, *size)).collect();
    let image = fixture.upstream.publish_image("app", "v1", &layers);
    assert_eq!(nodes[0].get("app/manifests/v1").await.unwrap().0, StatusCode::OK);
    for layer in &image.layers {
        assert_eq!(nodes[0].get(&format!("app/blobs/{layer}")).await.unwrap(), (StatusCode::OK, layer.clone()));
        fixture.upstream.remove("app", layer);
    }
    // One that does not know of another believes that it is alone.
    for node in nodes {
        let count = nodes.len() as f64;
        wait_until(LIMIT, "the nodes know each other", async || node.metric("entrepot_nodes") == count).await;
    }
    image.layers
}

/// A folder, and a bucket with two clients, if there is one.
async fn stores(ids: [&str; 2]) -> Vec<[Option<Store>; 2]> {
    let mut stores = vec![[None, None]];
    let Some(seaweed) = Seaweed::shared().await else { return stores };
    let config = BucketConfig {
        bucket: seaweed.bucket().await,
        prefix: Prefix::below("entrepot").unwrap(),
        endpoint: Some(seaweed.endpoint().parse().unwrap()),
        allow_plain_http: true,
        trusted_certificates: None,
        proxy: None,
        service: Service::S3 {
            region: Seaweed::REGION.to_owned(),
            path_style: true,
            credentials: Some(AccessKey {
                id: Seaweed::ACCESS_KEY_ID.to_owned(),
                secret: Secret::new(Seaweed::SECRET_ACCESS_KEY.to_owned()),
            }),
        },
    };
    let open = async |id: &str| -> Option<Store> {
        let id: ResourceId = id.parse().unwrap();
        let store: Store = Arc::new(BucketStore::open(config.clone(), id).await.unwrap());
        Some(store)
    };
    stores.push([open(ids[0]).await, open(ids[1]).await]);
    stores
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_nodes_read_wrong_is_set_aside_listed_and_kept() {
    for [first, second] in stores(["node-1", "node-2"]).await {
        let fixture = Fixture::on(first).await;
        let one = fixture.node_on("node-1", fixture.store.clone(), |config| config.damage = NEVER).await;
        let second = second.unwrap_or_else(|| fixture.store.clone());
        let two = fixture.node_on("node-2", second, |config| config.damage = NEVER).await;
        // Small and large, a wrong bit and a wrong size.
        let layers = cached(&fixture, &[&one, &two], &[1000, 3 * MIB, 2 * MIB]).await;
        for (number, layer) in layers.iter().enumerate() {
            let (_, object, _) = found(&fixture.store, layer).await;
            let mut bytes = images::random_bytes(number as u64, [1000, 3 * MIB, 2 * MIB][number]);
            if number == 2 {
                bytes.truncate(MIB);
            } else {
                bytes[500] ^= 1;
            }
            fixture.store.put(&object, bytes.clone().into()).await.unwrap();
            // Nobody gets it, and one node's word changes nothing.
            assert_ne!(one.get(&format!("app/blobs/{layer}")).await.unwrap(), (StatusCode::OK, images::sha256(&bytes)));
            until_said(&fixture.store, layer, 1, 0).await;
            assert_eq!(one.get(&format!("app/blobs/{layer}")).await.unwrap().0, StatusCode::NOT_FOUND);
            let (state, _, said) = found(&fixture.store, layer).await;
            assert_eq!((state, said.unwrap().set_aside_time), (PointerState::Live, None), "{number}");
            // The second node finds it, too.
            assert_ne!(two.get(&format!("app/blobs/{layer}")).await.unwrap(), (StatusCode::OK, images::sha256(&bytes)));
            let said = until_said(&fixture.store, layer, 2, 0).await;
            assert!(said.set_aside_time.is_some(), "{said:?}");
            assert_eq!(found(&fixture.store, layer).await.0, PointerState::Erased);
            assert_eq!(fixture.store.head(&object).await.unwrap(), Some(bytes.len() as u64), "it is kept");
        }
        // Who looks at what others have found keeps it for as long, and no longer.
        let three = fixture.node_on("node-3", fixture.store.clone(), |config| config.damage = OFTEN).await;
        let object = found(&fixture.store, &layers[0]).await.1;
        fixture.advance(OFTEN.kept - Duration::from_secs(3600)).await;
        tokio::time::sleep(OFTEN.look * 5).await;
        assert!(fixture.store.head(&object).await.unwrap().is_some());
        fixture.advance(Duration::from_secs(2 * 3600)).await;
        for layer in &layers {
            wait_until(LIMIT, "it is gone", async || {
                let (_, object, said) = found(&fixture.store, layer).await;
                said.is_none() && fixture.store.head(&object).await.unwrap().is_none()
            })
            .await;
        }
        drop((one, two, three));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_reads_all_of_it_wrong_takes_nothing_from_the_others() {
    let fixture = Fixture::on(None).await;
    let right = fixture.node_on("node-1", fixture.store.clone(), |config| config.damage = OFTEN).await;
    let broken = Arc::new(Crooked(fixture.store.clone()));
    let wrong = fixture.node_on("node-2", broken, |config| config.damage = OFTEN).await;
    let layers = cached(&fixture, &[&right, &wrong], &[1000, 3 * MIB]).await;
    for layer in &layers {
        let object = found(&fixture.store, layer).await.1;
        let path = format!("app/blobs/{layer}");
        assert_ne!(wrong.get(&path).await.unwrap(), (StatusCode::OK, layer.clone()));
        let said = until_said(&fixture.store, layer, 1, 1).await;
        assert!(said.wrong_for.contains("node-2") && said.right_for.contains("node-1"), "{said:?}");
        assert_eq!(right.get(&path).await.unwrap(), (StatusCode::OK, layer.clone()));
        let (state, named, said) = found(&fixture.store, layer).await;
        assert_eq!((state, named, said.unwrap().set_aside_time), (PointerState::Live, object, None));
    }
}

/// A store that a node reads with broken memory: one bit of all content is wrong.
struct Crooked(Store);

impl Crooked {
    fn bend(key: &Key, bytes: Bytes) -> Bytes {
        let mut bytes = bytes.to_vec();
        if let Some(first) = bytes.first_mut().filter(|_| key.as_str().starts_with("content/")) {
            *first ^= 1;
        }
        bytes.into()
    }
}

#[async_trait]
impl BlobStore for Crooked {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.0.put_once(key, bytes).await
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.0.put(key, bytes).await
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        self.0.replace_if(key, expected, bytes).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        let object = self.0.get(key).await?;
        Ok(object.map(|object| Object { bytes: Self::bend(key, object.bytes), ..object }))
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        self.0.head(key).await
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        let Some(stream) = self.0.read(key, range, None).await? else { return Ok(None) };
        let bytes = Self::bend(key, stream.try_collect::<Vec<Bytes>>().await?.concat().into());
        let damaged = |digest: &Digest| Error::Damaged { key: key.clone(), digest: digest.clone() };
        let end = digest.map(|digest| Err(damaged(digest)));
        let sent = bytes.slice(..bytes.len() - if end.is_some() { 1 } else { 0 });
        Ok(Some(futures_util::stream::iter([Ok(sent)].into_iter().chain(end)).boxed()))
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error> {
        self.0.list(prefix, start_after, limit).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.0.delete(key).await
    }

    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        self.0.delete_if(key, version).await
    }

    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        self.0.begin_upload(key).await
    }

    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error> {
        self.0.abort_uploads(owner).await
    }
}
