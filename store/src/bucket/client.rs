//! The library's client for each kind of service, and the differences between them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::IF_MATCH;
use http::{HeaderMap, Method, StatusCode};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::HttpConnector as _;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::list::PaginatedListStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, GetOptions, GetResult, HeaderValue, MultipartId, ObjectMeta,
    ObjectStore, PutResult, RetryConfig, UpdateVersion,
};
use url::Url;

use super::failure::Failure;
use super::signed::{self, Signed};
use super::transport::Connector;
use super::{BucketConfig, Cause, Service, uploads};
use crate::Version;

const CONNECT: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(60);
/// The hosts from which machines get their own credentials; a proxy is never used for them.
const NEVER_BY_PROXY: &str = "localhost,127.0.0.1,169.254.0.0/16,metadata.google.internal";

/// Everything that the library offers for a kind of service.
pub(super) trait Objects: ObjectStore + MultipartStore + PaginatedListStore {}

impl<T: ObjectStore + MultipartStore + PaginatedListStore> Objects for T {}

#[derive(Clone)]
pub(super) struct Client {
    objects: Arc<dyn Objects>,
    mark: Mark,
    /// Sends the requests that the library lacks, to services for which we know them.
    signed: Option<Signed>,
}

/// The library would print Azure's key and the proxy's password.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("mark", &self.mark).finish_non_exhaustive()
    }
}

/// The result of a conditional request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conditional {
    Done,
    /// The condition is not met.
    NotSo,
}

/// What distinguishes the values of an object.
#[derive(Clone, Copy, Debug)]
enum Mark {
    ETag,
    Generation,
}

/// The service left out an object's version.
#[derive(Debug, thiserror::Error)]
#[error("the service did not say which version of the object this is")]
struct NoVersion;

#[derive(Debug, thiserror::Error)]
#[error("`endpoint` has no host to put the bucket's name before: set `path_style`")]
struct NoHost;

#[derive(Debug, thiserror::Error)]
#[error("`endpoint` is clear text: give it `https`, or set `allow_plain_http`")]
struct ClearText;

impl Client {
    pub(super) fn build(config: &BucketConfig) -> Result<Self, Cause> {
        if config.endpoint.as_ref().is_some_and(|endpoint| endpoint.scheme() != "https") && !config.allow_plain_http {
            return Err(ClearText.into());
        }
        let options = options(config)?;
        Ok(match &config.service {
            Service::S3 { .. } => {
                let http = Connector.connect(&options)?;
                let s3 = s3(config, options)?;
                Self { objects: s3.clone(), mark: Mark::ETag, signed: Some(Signed { s3, http }) }
            }
            Service::Gcs { .. } => Self { objects: gcs(config, options)?, mark: Mark::Generation, signed: None },
            Service::Azure { .. } => Self { objects: azure(config, options)?, mark: Mark::ETag, signed: None },
        })
    }

    pub(super) fn objects(&self) -> &dyn Objects {
        &*self.objects
    }

    pub(super) async fn get(&self, path: &Path, options: GetOptions) -> Result<GetResult, object_store::Error> {
        self.objects.get_opts(path, options).await
    }

    /// The unfinished uploads for the object at `path`; empty if the service does not list them.
    pub(super) async fn uploads_of(&self, path: &Path) -> Result<Vec<MultipartId>, object_store::Error> {
        match &self.signed {
            Some(signed) => uploads::list(signed, path).await,
            None => Ok(Vec::new()),
        }
    }

    /// Deletes the object at `path` if it is at `version`; `None` if we know no such request for this service.
    pub(super) async fn delete_if(
        &self,
        path: &Path,
        version: &Version,
    ) -> Result<Option<Conditional>, object_store::Error> {
        let Some(signed) = &self.signed else { return Ok(None) };
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, HeaderValue::from_str(version.as_str()).map_err(signed::generic)?);
        let response = signed.send(Method::DELETE, path, &[], headers).await?;
        match response.status() {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(Some(Conditional::Done)),
            StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED => Ok(Some(Conditional::NotSo)),
            // Another write was under way; the next attempt will tell.
            other => Err(signed::generic(format!("the service answered {other}"))),
        }
    }

    pub(super) fn version_of(&self, meta: &ObjectMeta) -> Result<Version, Failure> {
        self.version(meta.e_tag.as_deref(), meta.version.as_deref())
    }

    pub(super) fn version_of_put(&self, put: &PutResult) -> Result<Version, Failure> {
        self.version(put.e_tag.as_deref(), put.version.as_deref())
    }

    fn version(&self, e_tag: Option<&str>, generation: Option<&str>) -> Result<Version, Failure> {
        let mark = match self.mark {
            Mark::ETag => e_tag,
            Mark::Generation => generation,
        };
        // In lists, some services omit the quotes that are part of it.
        let quoted = |mark: &str| match self.mark {
            Mark::ETag if !mark.ends_with('"') => format!("\"{mark}\""),
            Mark::ETag | Mark::Generation => mark.to_owned(),
        };
        mark.map(|mark| Version::new(quoted(mark))).ok_or_else(|| Failure::Garbled(Box::new(NoVersion)))
    }

    /// The form in which the library takes a version that a write may replace.
    pub(super) fn update_of(&self, version: &Version) -> UpdateVersion {
        let mark = Some(version.as_str().to_owned());
        match self.mark {
            Mark::ETag => UpdateVersion { e_tag: mark, version: None },
            Mark::Generation => UpdateVersion { e_tag: None, version: mark },
        }
    }
}

fn s3(config: &BucketConfig, options: ClientOptions) -> Result<Arc<AmazonS3>, Cause> {
    let Service::S3 { region, path_style, credentials } = &config.service else { unreachable!("the caller looked") };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&config.bucket)
        .with_region(region)
        .with_virtual_hosted_style_request(!path_style)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // A single key is deleted by a DELETE request, which every service has.
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(s3_endpoint(endpoint, &config.bucket, *path_style)?);
    }
    if let Some(key) = credentials {
        builder = builder.with_access_key_id(&key.id).with_secret_access_key(key.secret.expose());
    } else {
        // Only the credentials come from the environment, not the address of the bucket nor the way to it.
        let environment = AmazonS3Builder::from_env();
        for key in [
            AmazonS3ConfigKey::AccessKeyId,
            AmazonS3ConfigKey::SecretAccessKey,
            AmazonS3ConfigKey::Token,
            AmazonS3ConfigKey::WebIdentityTokenFile,
            AmazonS3ConfigKey::RoleArn,
            AmazonS3ConfigKey::RoleSessionName,
            AmazonS3ConfigKey::StsEndpoint,
            AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
            AmazonS3ConfigKey::ContainerCredentialsFullUri,
            AmazonS3ConfigKey::ContainerAuthorizationTokenFile,
            AmazonS3ConfigKey::MetadataEndpoint,
        ] {
            if let Some(value) = environment.get_config_value(&key) {
                builder = builder.with_config(key, value);
            }
        }
    }
    Ok(Arc::new(builder.with_client_options(options).with_retry(no_retries()).with_http_connector(Connector).build()?))
}

/// The library expects the bucket's name in the host already, unless it is part of the path.
fn s3_endpoint(endpoint: &Url, bucket: &str, path_style: bool) -> Result<String, Cause> {
    let mut endpoint = endpoint.clone();
    if !path_style {
        let host = endpoint.domain().ok_or(NoHost)?;
        let host = format!("{bucket}.{host}");
        endpoint.set_host(Some(&host))?;
    }
    Ok(endpoint.as_str().trim_end_matches('/').to_owned())
}

fn gcs(config: &BucketConfig, options: ClientOptions) -> Result<Arc<dyn Objects>, Cause> {
    let Service::Gcs { service_account_file } = &config.service else { unreachable!("the caller looked") };
    let mut builder = GoogleCloudStorageBuilder::new();
    if let Some(path) = service_account_file {
        builder = builder.with_service_account_path(path.to_string_lossy());
    } else {
        let environment = GoogleCloudStorageBuilder::from_env();
        for key in [
            GoogleConfigKey::ServiceAccount,
            GoogleConfigKey::ServiceAccountKey,
            GoogleConfigKey::ApplicationCredentials,
        ] {
            if let Some(value) = environment.get_config_value(&key) {
                builder = builder.with_config(key, value);
            }
        }
    }
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_base_url(endpoint.as_str().trim_end_matches('/'));
    }
    Ok(Arc::new(
        builder
            .with_bucket_name(&config.bucket)
            .with_client_options(options)
            .with_retry(no_retries())
            .with_http_connector(Connector)
            .build()?,
    ))
}

fn azure(config: &BucketConfig, options: ClientOptions) -> Result<Arc<dyn Objects>, Cause> {
    let Service::Azure { account, access_key } = &config.service else { unreachable!("the caller looked") };
    let mut builder = MicrosoftAzureBuilder::new().with_account(account).with_container_name(&config.bucket);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/').to_owned());
    }
    if let Some(key) = access_key {
        builder = builder.with_access_key(key.expose());
    } else {
        let environment = MicrosoftAzureBuilder::from_env();
        for key in [
            AzureConfigKey::AccessKey,
            AzureConfigKey::ClientId,
            AzureConfigKey::ClientSecret,
            AzureConfigKey::AuthorityId,
            AzureConfigKey::AuthorityHost,
            AzureConfigKey::FederatedTokenFile,
            AzureConfigKey::MsiEndpoint,
            AzureConfigKey::MsiResourceId,
            AzureConfigKey::ObjectId,
            AzureConfigKey::SasKey,
        ] {
            if let Some(value) = environment.get_config_value(&key) {
                builder = builder.with_config(key, value);
            }
        }
    }
    Ok(Arc::new(builder.with_client_options(options).with_retry(no_retries()).with_http_connector(Connector).build()?))
}

/// Limits are set around each call, where its purpose is known.
fn options(config: &BucketConfig) -> Result<ClientOptions, Cause> {
    let mut options = ClientOptions::new()
        .with_user_agent(HeaderValue::from_static(concat!("entrepot/", env!("CARGO_PKG_VERSION"))))
        .with_allow_http(config.allow_plain_http)
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT)
        .with_pool_idle_timeout(IDLE);
    for certificate in config.trusted_certificates.iter().map(|pem| Certificate::from_pem_bundle(pem.as_bytes())) {
        for certificate in certificate? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(match &config.proxy {
        Some(proxy) => options.with_proxy_url(proxy.expose().as_str()).with_proxy_excludes(NEVER_BY_PROXY),
        // Without a proxy of its own, the HTTP client would take one from the environment. So it gets one that is never
        // used: the star excludes all names, and the networks exclude all addresses.
        None => options.with_proxy_url("http://127.0.0.1:9").with_proxy_excludes("*,0.0.0.0/0,::/0"),
    })
}

/// The code above decides about repeating, as it knows what a repeated write may mean.
fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO }
}
