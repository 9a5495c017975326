//! The store with metrics for every call (how long it takes, and whether the store is away), and for the node's cache
//! in front of it.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use entrepot_domain::{Digest, ResourceId};
use entrepot_runtime::Metrics;
use entrepot_store::cache::Stats;
use entrepot_store::{
    Abilities, BlobStore, ByteStream, Deleted, Entry, Error, Key, NodeCache, Object, Prefix, Store, Upload, Version,
};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Gauge, Histogram, Meter};

/// A call that was given up after at least this time counts as one for which the store was away.
const PATIENCE: Duration = Duration::from_secs(2);

/// A store whose calls are measured.
pub(crate) struct Measured {
    inner: Store,
    metrics: StoreMetrics,
}

#[derive(Clone)]
struct StoreMetrics {
    duration: Histogram<f64>,
    away: Gauge<u64>,
}

impl Measured {
    pub(crate) fn new(inner: Store, metrics: &Metrics) -> Self {
        let meter = metrics.meter("entrepot.data_plane");
        let duration = meter
            .f64_histogram("entrepot.store.operation.duration")
            .with_unit("s")
            .with_description("How long calls to the store take, by what they are and how they end.")
            .build();
        let away = meter
            .u64_gauge("entrepot.store.away")
            .with_description("1 if the last call to the store found it away.")
            .build();
        away.record(0, &[]);
        Self { inner, metrics: StoreMetrics { duration, away } }
    }
}

impl StoreMetrics {
    async fn measure<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut measured = Measurement { metrics: self, operation, began: Instant::now(), outcome: "given_up" };
        let result = call.await;
        measured.outcome = match &result {
            Ok(_) => "ok",
            Err(Error::Away(_)) => "away",
            Err(Error::AlreadyExists | Error::Conflict) => "conflict",
            Err(Error::TooLarge { .. } | Error::BadRecord { .. } | Error::Damaged { .. }) => "bad_object",
        };
        result
    }
}

/// A call that is under way. It counts itself at its end, even if nobody waits for it any more.
struct Measurement<'a> {
    metrics: &'a StoreMetrics,
    operation: &'static str,
    began: Instant,
    outcome: &'static str,
}

impl Drop for Measurement<'_> {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let is_given_up = self.outcome == "given_up";
        // If the caller gave up earlier, that says nothing about the store.
        if !is_given_up || took >= PATIENCE {
            self.metrics.away.record(u64::from(is_given_up || self.outcome == "away"), &[]);
        }
        let attributes = [KeyValue::new("operation", self.operation), KeyValue::new("outcome", self.outcome)];
        self.metrics.duration.record(took.as_secs_f64(), &attributes);
    }
}

#[async_trait::async_trait]
impl BlobStore for Measured {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.metrics.measure("put_once", self.inner.put_once(key, bytes)).await
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.metrics.measure("put", self.inner.put(key, bytes)).await
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        self.metrics.measure("replace_if", self.inner.replace_if(key, expected, bytes)).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        self.metrics.measure("get", self.inner.get(key)).await
    }

    async fn get_content(&self, key: &Key, digest: &Digest) -> Result<Option<Bytes>, Error> {
        self.metrics.measure("get", self.inner.get_content(key, digest)).await
    }

    async fn put_content(&self, key: &Key, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        self.metrics.measure("put_once", self.inner.put_content(key, digest, bytes)).await
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        self.metrics.measure("head", self.inner.head(key)).await
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        self.metrics.measure("read", self.inner.read(key, range, digest)).await
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error> {
        self.metrics.measure("list", self.inner.list(prefix, start_after, limit)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.metrics.measure("delete", self.inner.delete(key)).await
    }

    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        self.metrics.measure("delete_if", self.inner.delete_if(key, version)).await
    }

    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        let inner = self.metrics.measure("begin_upload", self.inner.begin_upload(key)).await?;
        Ok(Box::new(MeasuredUpload { inner, metrics: self.metrics.clone() }))
    }

    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error> {
        self.metrics.measure("abort_uploads", self.inner.abort_uploads(owner)).await
    }
}

/// An upload whose calls are measured.
struct MeasuredUpload {
    inner: Box<dyn Upload>,
    metrics: StoreMetrics,
}

#[async_trait::async_trait]
impl Upload for MeasuredUpload {
    async fn part(&mut self, bytes: Bytes) -> Result<(), Error> {
        self.metrics.measure("upload_part", self.inner.part(bytes)).await
    }

    async fn complete(self: Box<Self>, digest: Option<&Digest>) -> Result<(), Error> {
        self.metrics.measure("complete_upload", self.inner.complete(digest)).await
    }

    async fn abort(self: Box<Self>) -> Result<(), Error> {
        self.metrics.measure("abort_upload", self.inner.abort()).await
    }
}

/// Adds metrics of `cache`, for as long as it lives.
pub(crate) fn observe(cache: &Arc<NodeCache>, metrics: &Metrics) {
    let meter = metrics.meter("entrepot.data_plane");
    count_cache(cache, &meter);
    meter
        .u64_observable_gauge("entrepot.cache.size")
        .with_unit("By")
        .with_description("What the blobs on the node's disk take.")
        .with_callback(of(cache, |stats, gauge| gauge.observe(stats.blob_bytes, &[])))
        .build();
    meter
        .u64_observable_gauge("entrepot.cache.objects")
        .with_description("Blobs on the node's disk.")
        .with_callback(of(cache, |stats, gauge| gauge.observe(stats.blobs, &[])))
        .build();
}

fn count_cache(cache: &Arc<NodeCache>, meter: &Meter) {
    let reads = of(cache, |stats, counter| {
        counter.observe(stats.hits, &[KeyValue::new("outcome", "hit")]);
        counter.observe(stats.misses, &[KeyValue::new("outcome", "miss")]);
    });
    meter
        .u64_observable_counter("entrepot.cache.reads")
        .with_description("Reads of blobs, by whether the node's disk had them.")
        .with_callback(reads)
        .build();
    meter
        .u64_observable_counter("entrepot.cache.evictions")
        .with_description("Blobs that were removed from the node's disk to make room for others.")
        .with_callback(of(cache, |stats, counter| counter.observe(stats.evictions, &[])))
        .build();
    meter
        .u64_observable_counter("entrepot.cache.rejected")
        .with_description("Blobs that were not cached, since their bytes did not hash to their digest.")
        .with_callback(of(cache, |stats, counter| counter.observe(stats.rejected, &[])))
        .build();
}

/// A callback that reads something from the cache, if that still exists.
fn of(
    cache: &Arc<NodeCache>,
    observe: impl Fn(&Stats, &dyn AsyncInstrument<u64>) + Send + Sync + 'static,
) -> impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static {
    let cache: Weak<NodeCache> = Arc::downgrade(cache);
    move |instrument| {
        if let Some(cache) = cache.upgrade() {
            observe(&cache.stats(), instrument);
        }
    }
}
