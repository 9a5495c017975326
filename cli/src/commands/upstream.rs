//! `entrepot upstream`.

mod health;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use entrepot_proto::convert;
use entrepot_proto::v1::{
    Budget, CreateUpstreamRequest, DeleteUpstreamRequest, GetUpstreamRequest, ListUpstreamsRequest,
    UpdateUpstreamRequest, Upstream, UpstreamKind,
};
use entrepot_runtime::config::Setting as _;
use prost_types::FieldMask;

use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, time, word};

/// More than any password or bundle of certificates has.
const INPUT_MAX_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create an upstream.
    #[command(after_help = "\
Examples:
  entrepot upstream create quay --kind quay
  entrepot upstream create hub --kind docker-hub --username me --password-file token.txt
  entrepot upstream create corp --kind oci --endpoint https://registry.corp.example --ca-file corp.pem
  entrepot upstream create local --kind oci --endpoint http://127.0.0.1:5100 \\
      --allow-plain-http --allow-private-addresses")]
    Create {
        /// The upstream's id: 1 to 63 lower-case letters, digits and inner hyphens.
        #[arg(value_name = "UPSTREAM")]
        upstream: String,
        /// What kind of registry it is; all but `oci` know their endpoint.
        #[arg(long, value_enum)]
        kind: KindName,
        #[command(flatten)]
        fields: Fields,
    },
    /// Show an upstream.
    Get {
        #[arg(value_name = "UPSTREAM")]
        upstream: String,
    },
    /// List all upstreams.
    List,
    /// Change an upstream; the next request to it uses the new settings. An empty value clears a field.
    #[command(after_help = "\
Examples:
  entrepot upstream update hub --username me --password-stdin < token.txt
  entrepot upstream update local --allow-private-addresses=false")]
    Update {
        #[arg(value_name = "UPSTREAM")]
        upstream: String,
        #[command(flatten)]
        fields: Fields,
        /// Only if the upstream still has this etag.
        #[arg(long)]
        etag: Option<String>,
    },
    /// Delete an upstream that no rule names.
    Delete {
        #[arg(value_name = "UPSTREAM")]
        upstream: String,
        /// Only if the upstream still has this etag.
        #[arg(long)]
        etag: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum KindName {
    /// Any registry that speaks the OCI distribution protocol; needs --endpoint.
    Oci,
    /// Amazon ECR Public, public.ecr.aws.
    EcrPublic,
    /// Quay, quay.io.
    Quay,
    /// Docker Hub.
    DockerHub,
    /// The Kubernetes community's registry, registry.k8s.io.
    Kubernetes,
    /// GitHub's container registry, ghcr.io.
    Github,
}

impl From<KindName> for UpstreamKind {
    fn from(kind: KindName) -> Self {
        match kind {
            KindName::Oci => Self::Oci,
            KindName::EcrPublic => Self::EcrPublic,
            KindName::Quay => Self::Quay,
            KindName::DockerHub => Self::DockerHub,
            KindName::Kubernetes => Self::Kubernetes,
            KindName::Github => Self::Github,
        }
    }
}

#[derive(Debug, Default, Args)]
pub(crate) struct Fields {
    /// Scheme, host and perhaps port of its API, such as `https://registry.example.com`.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Let the endpoint be plain HTTP. Digests protect content on its way; nothing protects credentials.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_plain_http: Option<bool>,
    /// Let the endpoint and the allowed hosts be at private or loopback addresses.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_private_addresses: Option<bool>,
    /// A further host, or host:port, that it may send requests and credentials to. May be given several times.
    #[arg(long = "allow-host", value_name = "HOST")]
    allow_hosts: Option<Vec<String>>,
    /// Certificates (PEM) of authorities to trust besides the system's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Where the same content is, asked while the endpoint is away or limits our requests. May be given several times, in
    /// the order in which to ask; '' for none.
    #[arg(long = "fallback-endpoint", value_name = "URL")]
    fallback_endpoints: Option<Vec<String>>,
    /// How many requests it may get in how long, such as 5000/1d; `none` leaves it to the upstream.
    #[arg(long, value_name = "REQUESTS/LENGTH", value_parser = budget)]
    budget: Option<BudgetFlag>,
    /// Whom to log in as.
    #[arg(long)]
    username: Option<String>,
    /// Read the password or token of that user from standard input.
    #[arg(long, conflicts_with = "password_file")]
    password_stdin: bool,
    /// Read the password or token of that user from a file.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl Command {
    pub(super) async fn run(self, session: &Session) -> Result<(), Error> {
        let (mut upstreams, output) = (session.upstreams(), session.output);
        match self {
            Self::Create { upstream, kind, fields } => {
                let upstream_id = names::short("upstreams", &upstream).to_owned();
                let (mut upstream, _) = fields.read()?;
                upstream.kind = UpstreamKind::from(kind).into();
                let request = CreateUpstreamRequest { upstream_id, upstream: Some(upstream), ..Default::default() };
                output.one(&upstreams.create_upstream(request).await?.into_inner())?;
            }
            Self::Get { upstream } => {
                let request = GetUpstreamRequest { name: names::full("upstreams", &upstream) };
                output.one(&upstreams.get_upstream(request).await?.into_inner())?;
            }
            Self::List => {
                let page = async |page_token| {
                    let request = ListUpstreamsRequest { page_size: PAGE_SIZE, page_token };
                    let answer = upstreams.list_upstreams(request).await?.into_inner();
                    Ok((answer.upstreams, answer.next_page_token))
                };
                output.list(&all_pages(page).await?)?;
            }
            Self::Update { upstream: name, fields, etag } => {
                let (mut upstream, paths) = fields.read()?;
                if paths.is_empty() {
                    let text = "nothing to change: give a field, such as --endpoint; see `entrepot upstream update -h`";
                    return Err(Error::Usage(text.to_owned()));
                }
                upstream.name = names::full("upstreams", &name);
                upstream.etag = etag.unwrap_or_default();
                let update_mask = Some(FieldMask { paths });
                let request = UpdateUpstreamRequest { upstream: Some(upstream), update_mask };
                output.one(&upstreams.update_upstream(request).await?.into_inner())?;
            }
            Self::Delete { upstream, etag } => {
                let name = names::full("upstreams", &upstream);
                let request = DeleteUpstreamRequest { name, etag: etag.unwrap_or_default() };
                let deleted = upstreams.delete_upstream(request).await?.into_inner();
                output.deleted(&deleted, &deleted.name)?;
            }
        }
        Ok(())
    }
}

impl Fields {
    /// The upstream that is described, and the paths of the fields that are given.
    fn read(self) -> Result<(Upstream, Vec<String>), Error> {
        let mut upstream = Upstream::default();
        let mut paths = vec![];
        let mut given = |path: &str| paths.push(path.to_owned());
        if let Some(endpoint) = self.endpoint {
            given("endpoint");
            upstream.endpoint = endpoint;
        }
        if let Some(allow) = self.allow_plain_http {
            given("allow_plain_http");
            upstream.allow_plain_http = allow;
        }
        if let Some(allow) = self.allow_private_addresses {
            given("allow_private_addresses");
            upstream.allow_private_addresses = allow;
        }
        if let Some(hosts) = self.allow_hosts {
            given("allow_hosts");
            upstream.allow_hosts = hosts.into_iter().filter(|host| !host.is_empty()).collect();
        }
        if let Some(fallbacks) = self.fallback_endpoints {
            given("fallback_endpoints");
            upstream.fallback_endpoints = fallbacks.into_iter().filter(|endpoint| !endpoint.is_empty()).collect();
        }
        if let Some(BudgetFlag(budget)) = self.budget {
            given("budget");
            upstream.budget = budget;
        }
        if let Some(file) = self.ca_file {
            given("ca_certificates");
            upstream.ca_certificates = if file.as_os_str().is_empty() { String::new() } else { read_file(&file)? };
        }
        if let Some(username) = self.username {
            given("username");
            upstream.username = username;
        }
        let password = match self.password_file {
            Some(file) => Some(read_file(&file)?),
            None if self.password_stdin => Some(read_text(std::io::stdin(), "standard input")?),
            None => None,
        };
        if let Some(password) = password {
            given("password");
            upstream.password = password.trim_end_matches(['\r', '\n']).to_owned();
        }
        Ok((upstream, paths))
    }
}

/// A budget; `None` for none.
#[derive(Clone, Copy, Debug)]
struct BudgetFlag(Option<Budget>);

fn budget(text: &str) -> Result<BudgetFlag, String> {
    if text == "none" {
        return Ok(BudgetFlag(None));
    }
    let (requests, window) = text.split_once('/').ok_or("such as 5000/1d, or `none`")?;
    let requests = requests.parse().map_err(|_| "begins with a number of requests, such as 5000/1d")?;
    let window = Duration::from_text(window)?;
    Ok(BudgetFlag(Some(Budget { requests, window: Some(convert::duration(window)) })))
}

fn read_file(path: &Path) -> Result<String, Error> {
    let file = std::fs::File::open(path)
        .map_err(|error| Error::Usage(format!("cannot read `{}`: {error}", path.display())))?;
    read_text(file, &path.display().to_string())
}

fn read_text(input: impl Read, what: &str) -> Result<String, Error> {
    let mut text = String::new();
    input
        .take(INPUT_MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| Error::Usage(format!("cannot read {what} as text: {error}")))?;
    Ok(text)
}

impl Shown for Upstream {
    const MESSAGE: &'static str = "entrepot.v1.Upstream";

    fn details(&self) -> Cells {
        let yes = |is: bool| if is { "yes".to_owned() } else { String::new() };
        let certificates = self.ca_certificates.matches("-----BEGIN CERTIFICATE-----").count();
        let mut cells = self.row();
        cells.extend([
            ("PASSWORD", yes(self.has_password)),
            ("PLAIN HTTP", yes(self.allow_plain_http)),
            ("PRIVATE ADDRESSES", yes(self.allow_private_addresses)),
            ("ALLOWED HOSTS", self.allow_hosts.join(", ")),
            ("FALLBACKS", self.fallback_endpoints.join(", ")),
            ("BUDGET", self.budget.as_ref().map(health::budget).unwrap_or_default()),
            ("OWN AUTHORITIES", if certificates > 0 { certificates.to_string() } else { String::new() }),
            ("SUGGESTED PREFIX", self.suggested_prefix.clone()),
            ("CREATED", time(self.create_time.as_ref())),
            ("UPDATED", time(self.update_time.as_ref())),
            ("ETAG", self.etag.clone()),
        ]);
        cells.extend(self.health.iter().flat_map(health::details));
        cells
    }
}

impl Listed for Upstream {
    const ITEMS: &'static str = "upstreams";

    fn row(&self) -> Cells {
        let health = self.health.clone().unwrap_or_default();
        vec![
            ("UPSTREAM", names::short("upstreams", &self.name).to_owned()),
            ("KIND", word(self, "kind").replace(' ', "-")),
            ("ENDPOINT", self.endpoint.clone()),
            ("USERNAME", self.username.clone()),
            ("STATE", health::state(health.state(), health.until_time.as_ref())),
            ("LEFT", health.budget_left.as_ref().map(health::left).unwrap_or_default()),
            ("USED UP", health.budget_left.as_ref().map(|left| time(left.exhaust_time.as_ref())).unwrap_or_default()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_given_are_in_the_mask_also_when_they_clear() {
        let fields = Fields {
            allow_plain_http: Some(false),
            allow_hosts: Some(vec![String::new()]),
            ca_file: Some(PathBuf::new()),
            username: Some("me".to_owned()),
            ..Default::default()
        };
        let (upstream, paths) = fields.read().unwrap();
        assert_eq!(paths, ["allow_plain_http", "allow_hosts", "ca_certificates", "username"]);
        assert_eq!((upstream.allow_hosts.len(), upstream.username.as_str()), (0, "me"));
    }

    #[test]
    fn a_password_file_loses_only_its_last_line_break() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, " se cret \n").unwrap();
        let (upstream, paths) = Fields { password_file: Some(file), ..Default::default() }.read().unwrap();
        assert_eq!((upstream.password.as_str(), paths), (" se cret ", vec!["password".to_owned()]));
    }
}
