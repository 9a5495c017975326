//! A store in a bucket: S3, Google Cloud Storage, Azure Blob Storage, or a service with S3's protocol.
//!
//! Nodes and control planes share a bucket without knowing about each other. Only the bucket's conditional writes keep
//! them from overwriting each other, so [`BucketStore::open`] tries these out and refuses a bucket that ignores them.
//!
//! Every request to a bucket ends within the limits in [`limits`]. Requests are repeated here and not by the library
//! below, which knows neither these limits nor what a repeated conditional write may mean.

mod client;
mod failure;
mod keys;
mod limits;
mod list;
mod probe;
mod read;
mod signed;
mod transport;
mod upload;
mod uploads;
mod write;

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use entrepot_domain::{Digest, ResourceId, Secret};
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStoreExt as _};
use parking_lot::Mutex;
use tracing::warn;
use url::Url;

use crate::verify::{self, SMALL_BYTES};
use crate::{
    Abilities, BlobStore, ByteStream, Deleted, Entry, Error, GET_LIMIT_BYTES, Key, Object, Prefix, Upload, Version,
};
use client::{Client, Conditional};
use failure::Failure;
use limits::Tries;
use list::Order;
use transport::SaidAt;
use write::Condition;

/// A bucket, and the credentials for it.
#[derive(Clone, Debug)]
pub struct BucketConfig {
    /// The bucket's name; Azure calls it a container.
    pub bucket: String,
    /// The prefix of all names, for a bucket that is shared with others.
    pub prefix: Prefix,
    /// The service's address, if it is not the provider's own.
    pub endpoint: Option<Url>,
    /// Whether that address may be plain HTTP.
    pub allow_plain_http: bool,
    /// Certificates in PEM that are trusted in addition to the machine's.
    pub trusted_certificates: Option<String>,
    /// The proxy for requests to the service. Without this setting none is used, whatever the environment says.
    pub proxy: Option<Secret<Url>>,
    pub service: Service,
}

/// The kind of service. Without credentials here, those of the machine are used: from the environment, as the
/// provider's own tools read it, or from the role of the instance.
#[derive(Clone, Debug)]
pub enum Service {
    /// Amazon S3, or a service with its protocol.
    S3 {
        region: String,
        /// Whether the bucket's name is part of the path instead of the host.
        path_style: bool,
        credentials: Option<AccessKey>,
    },
    /// Google Cloud Storage.
    Gcs {
        /// The JSON file of a service account.
        service_account_file: Option<PathBuf>,
    },
    /// Azure Blob Storage.
    Azure { account: String, access_key: Option<Secret<String>> },
}

/// An access key of S3.
#[derive(Clone, Debug)]
pub struct AccessKey {
    pub id: String,
    pub secret: Secret<String>,
}

/// Why a bucket cannot be used as a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration cannot be used.
    #[error("the bucket `{bucket}` is not configured correctly")]
    BadConfig {
        bucket: String,
        /// What is wrong.
        source: Cause,
    },
    /// The bucket does not exist.
    #[error("there is no bucket `{bucket}`: create it, or correct `bucket` and `endpoint`")]
    NoBucket {
        bucket: String,
        /// The service's answer.
        source: Cause,
    },
    /// The service refuses an operation that a store needs.
    #[error(
        "the bucket `{bucket}` refuses access: check the access key and its secret, and that they may list, read, write and delete there"
    )]
    Denied {
        bucket: String,
        /// The service's answer.
        source: Cause,
    },
    /// Two writers would overwrite each other in it.
    #[error(
        "the bucket `{bucket}` ignores conditional writes, so nodes would overwrite each other ({what}): use a service that has If-None-Match and If-Match on writes"
    )]
    IgnoresConditions {
        bucket: String,
        /// What was observed.
        what: &'static str,
    },
    /// It cannot be reached at the moment; trying again may help.
    #[error("the bucket `{bucket}` is away")]
    Away { bucket: String, source: Cause },
}

/// The cause of a failure.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

impl OpenError {
    /// Whether trying again later may succeed, without anybody changing anything.
    pub fn retry(&self) -> bool {
        match self {
            Self::Away { .. } => true,
            Self::BadConfig { .. } | Self::NoBucket { .. } | Self::Denied { .. } | Self::IgnoresConditions { .. } => {
                false
            }
        }
    }
}

/// A bucket with objects. Their names in it are the prefix followed by the key.
#[derive(Clone, Debug)]
pub struct BucketStore(Arc<Bucket>);

#[derive(Debug)]
struct Bucket {
    client: Client,
    prefix: Prefix,
    /// The owner under which uploads are recorded.
    owner: ResourceId,
    /// The records of uploads that are under way in this process.
    running: Mutex<HashSet<Key>>,
    order: Order,
    abilities: Abilities,
}

impl BucketStore {
    /// Opens a bucket, after trying out what we rely on. `owner` is the node in whose name uploads are begun.
    ///
    /// # Errors
    /// See [`OpenError`]. This does not wait for a bucket that is away.
    pub async fn open(config: BucketConfig, owner: ResourceId) -> Result<Self, OpenError> {
        let name = config.bucket.clone();
        let client = Client::build(&config).map_err(|source| OpenError::BadConfig { bucket: name.clone(), source })?;
        let running = Mutex::default();
        let (order, abilities) = (Order::Bytes, Abilities { deletes_if: false, lists_at_once: false });
        let store = Self(Arc::new(Bucket { client, prefix: config.prefix, owner, running, order, abilities }));
        let (order, abilities) = probe::run(&store, &name).await?;
        if !abilities.lists_at_once {
            warn!(
                "the bucket `{name}` does not list at once what is written to it, so nothing that relies on lists is deleted"
            );
        }
        let Bucket { client, prefix, owner, .. } = &*store.0;
        let (client, prefix, owner) = (client.clone(), prefix.clone(), owner.clone());
        Ok(Self(Arc::new(Bucket { client, prefix, owner, running: Mutex::default(), order, abilities })))
    }
}

impl Bucket {
    fn path(&self, key: &Key) -> Path {
        Path::from(format!("{}{key}", self.prefix))
    }

    async fn delete(&self, path: &Path) -> Result<(), object_store::Error> {
        self.client.objects().delete(path).await
    }

    /// The size of an object, without reading it.
    async fn size(&self, path: &Path) -> Result<Option<u64>, Failure> {
        let mut tries = Tries::small();
        let head = tries.idempotent(|| self.client.get(path, GetOptions { head: true, ..GetOptions::default() })).await;
        Failure::absent_is_none(head.map(|result| result.meta.size))
    }
}

#[async_trait]
impl BlobStore for BucketStore {
    async fn put_once(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        self.0.write(&self.0.path(key), bytes.into(), Condition::Absent).await.map_err(|failure| failure.of_put_once())
    }

    async fn put(&self, key: &Key, bytes: Bytes) -> Result<Version, Error> {
        Ok(self.0.write(&self.0.path(key), bytes.into(), Condition::Any).await?)
    }

    async fn replace_if(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version, Error> {
        let condition = expected.cloned().map_or(Condition::Absent, Condition::Is);
        Ok(self.0.write(&self.0.path(key), bytes.into(), condition).await?)
    }

    async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        let path = self.0.path(key);
        let mut tries = Tries::small();
        let found = tries
            .idempotent(|| async {
                let result = self.0.client.get(&path, GetOptions::default()).await?;
                let (size_bytes, version) = (result.meta.size, self.0.client.version_of(&result.meta));
                let read_time = result.extensions.get::<SaidAt>().map(|SaidAt(time)| *time);
                let times = (result.meta.last_modified, read_time);
                if size_bytes > GET_LIMIT_BYTES {
                    return Ok(Err((size_bytes, version.ok())));
                }
                let chunks: Vec<Bytes> = result.into_stream().try_collect().await?;
                let bytes = if let [one] = &chunks[..] { one.clone() } else { chunks.concat().into() };
                Ok(Ok((bytes, version, times)))
            })
            .await;
        match Failure::absent_is_none(found)? {
            None => Ok(None),
            Some(Err((size_bytes, version))) => Err(Error::TooLarge { key: key.clone(), size_bytes, version }),
            Some(Ok((bytes, version, (modify_time, read_time)))) => {
                Ok(Some(Object { bytes, version: version?, modify_time, read_time }))
            }
        }
    }

    async fn head(&self, key: &Key) -> Result<Option<u64>, Error> {
        Ok(self.0.size(&self.0.path(key)).await?)
    }

    async fn read(&self, key: &Key, range: Range<u64>, digest: Option<&Digest>) -> Result<Option<ByteStream>, Error> {
        let path = self.0.path(key);
        let Some((bytes, size_bytes)) = read::open(&self.0, path.clone(), range.clone()).await? else {
            return Ok(None);
        };
        let is_whole = range.start == 0 && range.end >= size_bytes;
        match digest {
            Some(digest) if size_bytes <= SMALL_BYTES => {
                drop(bytes);
                let whole = self.get_content(key, digest).await?;
                Ok(whole.map(|whole| verify::part(whole, range)))
            }
            Some(digest) if is_whole => {
                let bucket = Arc::clone(&self.0);
                let again = async move {
                    let read = read::open(&bucket, path, 0..size_bytes).await?;
                    Ok(read.map(|(bytes, _)| bytes))
                };
                Ok(Some(verify::hashed(bytes, key, digest, size_bytes, again)))
            }
            Some(_) | None => Ok(Some(bytes)),
        }
    }

    async fn list(&self, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Result<Vec<Entry>, Error> {
        Ok(list::list(&self.0, prefix, start_after, limit).await?)
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let path = self.0.path(key);
        Failure::absent_is_none(Tries::small().idempotent(|| self.0.delete(&path)).await)?;
        Ok(())
    }

    async fn delete_if(&self, key: &Key, version: &Version) -> Result<Deleted, Error> {
        if !self.0.abilities.deletes_if {
            return Ok(Deleted::Unsupported);
        }
        let path = self.0.path(key);
        let done = Tries::small().idempotent(|| self.0.client.delete_if(&path, version)).await?;
        Ok(match done {
            Some(Conditional::Done) => Deleted::Yes,
            Some(Conditional::NotSo) => Deleted::No,
            None => Deleted::Unsupported,
        })
    }

    fn abilities(&self) -> Abilities {
        self.0.abilities
    }

    async fn begin_upload(&self, key: &Key) -> Result<Box<dyn Upload>, Error> {
        Ok(Box::new(upload::BucketUpload::begin(Arc::clone(&self.0), key.clone())))
    }

    async fn abort_uploads(&self, owner: &ResourceId) -> Result<usize, Error> {
        upload::abort_all(self, owner).await
    }
}
