//! The store, with every call measured: how long it takes, and whether the store is away.

use std::future::Future;
use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;
use entrepot_domain::ResourceId;
use entrepot_runtime::Metrics;
use entrepot_store::{BlobStore, ByteStream, Error, Key, Object, Prefix, Store, Upload, Version};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Gauge, Histogram};

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
        let began = Instant::now();
        let result = call.await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(Error::Away(_)) => "away",
            Err(Error::AlreadyExists | Error::Conflict) => "conflict",
            Err(Error::TooLarge { .. } | Error::BadRecord { .. }) => "bad_object",
        };
        self.away.record(u64::from(outcome == "away"), &[]);
        let attributes = [KeyValue::new("operation", operation), KeyValue::new("outcome", outcome)];
        self.duration.record(began.elapsed().as_secs_f64(), &attributes);
        result
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

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        self.metrics.measure("head", self.inner.head(key)).await
    }

    async fn read(&self, key: &Key, range: Range<u64>) -> Result<Option<ByteStream>, Error> {
        self.metrics.measure("read", self.inner.read(key, range)).await
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Key>, Error> {
        self.metrics.measure("list", self.inner.list(prefix, start_after, limit)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.metrics.measure("delete", self.inner.delete(key)).await
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

    async fn complete(self: Box<Self>) -> Result<(), Error> {
        self.metrics.measure("complete_upload", self.inner.complete()).await
    }

    async fn abort(self: Box<Self>) -> Result<(), Error> {
        self.metrics.measure("abort_upload", self.inner.abort()).await
    }
}
