//! The bucket, and the credentials for it.

use std::path::PathBuf;

use entrepot_domain::Secret;
use entrepot_runtime::config::{Reader, Reported, Section};
use entrepot_store::Prefix;
use entrepot_store::bucket::{AccessKey, BucketConfig, Service};
use url::Url;

use crate::{ca_file, secret};

/// `[store]`: a bucket. (A local folder belongs to one process, `entrepot up`.)
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// The bucket, and how to reach it.
    pub bucket: BucketConfig,
}

/// The values of `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    S3,
    Gcs,
    Azure,
}

/// The keys that belong to one kind only.
const OF_KIND: [(&str, Kind); 9] = [
    ("region", Kind::S3),
    ("access_key_id", Kind::S3),
    ("secret_access_key", Kind::S3),
    ("secret_access_key_file", Kind::S3),
    ("path_style", Kind::S3),
    ("service_account_file", Kind::Gcs),
    ("account", Kind::Azure),
    ("access_key", Kind::Azure),
    ("access_key_file", Kind::Azure),
];

impl StoreSettings {
    /// Reads the section.
    ///
    /// # Errors
    /// If something in it is wrong; the reader keeps the mistakes.
    pub fn read(reader: &mut Reader) -> Result<Self, Reported> {
        let mut section = reader.section("store");
        let section = &mut section;
        let kind = kind(section);
        let bucket = section
            .required::<String>("bucket")
            .and_then(|bucket| if bucket.is_empty() { Err(section.missing("bucket")) } else { Ok(bucket) });
        let prefix = prefix(section);
        let endpoint = endpoint(section);
        let trusted_certificates = ca_file(section);
        let proxy = proxy(section);
        let (s3, gcs, azure) = (s3(section), gcs(section), azure(section));
        let kind = kind?;
        for (key, of) in OF_KIND {
            if of != kind && section.is_set(key) {
                let _ = section.problem(key, format!("is for kind = \"{}\" only: remove it", of.as_str()));
            }
        }
        let service = match kind {
            Kind::S3 => s3,
            Kind::Gcs => gcs,
            Kind::Azure => azure.and_then(|(account, access_key)| match account {
                Some(account) => Ok(Service::Azure { account, access_key }),
                None => Err(section.missing("account")),
            }),
        };
        let (endpoint, allow_plain_http) = endpoint?;
        let bucket = BucketConfig {
            bucket: bucket?,
            prefix: prefix?,
            endpoint,
            allow_plain_http,
            trusted_certificates: trusted_certificates?,
            proxy: proxy?,
            service: service?,
        };
        Ok(Self { bucket })
    }
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gcs",
            Self::Azure => "azure",
        }
    }
}

fn kind(section: &mut Section<'_>) -> Result<Kind, Reported> {
    let text = section.required::<String>("kind")?;
    [Kind::S3, Kind::Gcs, Kind::Azure].into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
        section.problem(
            "kind",
            format!("must be `s3`, `gcs` or `azure`, not `{text}`; a local folder is for `entrepot up`"),
        )
    })
}

fn prefix(section: &mut Section<'_>) -> Result<Prefix, Reported> {
    let text = section.get::<String>("prefix", "")?;
    let folder = text.trim_matches('/');
    if folder.is_empty() {
        return Ok(Prefix::all());
    }
    Prefix::below(folder).map_err(|error| section.problem("prefix", format!("{error}, such as `team/registry`")))
}

fn endpoint(section: &mut Section<'_>) -> Result<(Option<Url>, bool), Reported> {
    const KEY: &str = "endpoint";
    let url = section.optional::<Url>(KEY);
    let plain = section.get::<bool>("allow_plain_http", "false");
    let (Some(url), plain) = (url?, plain?) else { return Ok((None, false)) };
    let what = match url.scheme() {
        _ if !url.username().is_empty() || url.password().is_some() => "must not hold credentials: they have own keys",
        "http" if !plain => {
            "is clear text: use https, or set allow_plain_http = true if nobody can listen on that network"
        }
        "http" | "https" if url.has_host() && url.query().is_none() => return Ok((Some(url), plain)),
        _ => "must be a URL with http or https, such as `https://s3.example:9000`",
    };
    Err(section.problem(KEY, what))
}

/// The URL of a proxy. It may contain a password, so it can be in a file of its own.
fn proxy(section: &mut Section<'_>) -> Result<Option<Secret<Url>>, Reported> {
    const KEY: &str = "proxy";
    let Some(text) = secret(section, KEY)? else { return Ok(None) };
    match text.expose().parse::<Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Some(Secret::new(url))),
        _ => Err(section.problem(KEY, "must be a URL with http or https, such as `http://proxy.example:3128`")),
    }
}

fn s3(section: &mut Section<'_>) -> Result<Service, Reported> {
    let region = section.get::<String>("region", "us-east-1");
    let id = section.optional::<String>("access_key_id");
    let secret = secret(section, "secret_access_key");
    // Cloud providers have the bucket in the host name; other services seldom have a name for each bucket.
    let path_style = section.optional::<bool>("path_style");
    let credentials = match (id?, secret?) {
        (Some(id), Some(secret)) => Some(AccessKey { id, secret }),
        (None, None) => None,
        (Some(_), None) => return Err(section.problem("secret_access_key", "must be set, since access_key_id is")),
        (None, Some(_)) => return Err(section.problem("access_key_id", "must be set, since secret_access_key is")),
    };
    let path_style = path_style?.unwrap_or_else(|| section.is_set("endpoint"));
    Ok(Service::S3 { region: region?, credentials, path_style })
}

fn gcs(section: &mut Section<'_>) -> Result<Service, Reported> {
    let service_account_file = section.optional::<PathBuf>("service_account_file")?;
    match &service_account_file {
        Some(path) if let Err(error) = std::fs::File::open(path) => {
            Err(section.problem("service_account_file", format!("`{}` cannot be read: {error}", path.display())))
        }
        _ => Ok(Service::Gcs { service_account_file }),
    }
}

fn azure(section: &mut Section<'_>) -> Result<(Option<String>, Option<Secret<String>>), Reported> {
    let account = section.optional::<String>("account");
    let access_key = secret(section, "access_key");
    Ok((account?, access_key?))
}
