//! `entrepot upstream`.

mod health;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use entrepot_proto::convert;
use entrepot_proto::v1::validation_step::State;
use entrepot_proto::v1::{
    Budget, CreateUpstreamRequest, DeleteUpstreamRequest, GetUpstreamRequest, ListUpstreamsRequest,
    UpdateUpstreamRequest, Upstream, UpstreamKind, ValidateUpstreamRequest,
};
use entrepot_runtime::config::Setting as _;

use super::mask::Mask;
use crate::client::{PAGE_SIZE, Session, all_pages};
use crate::error::Error;
use crate::names;
use crate::output::{Cells, Listed, Shown, note, time, word};

/// How long a new upstream is checked.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// Larger than any password or bundle of certificates.
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
        /// The kind of registry; all but `oci` know their endpoint.
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
    /// Delete an upstream that no rule refers to.
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
    /// Any registry with the OCI distribution protocol; needs --endpoint.
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
    /// GitLab's container registry, registry.gitlab.com unless --endpoint is given.
    Gitlab,
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
            KindName::Gitlab => Self::Gitlab,
        }
    }
}

#[derive(Debug, Default, Args)]
pub(crate) struct Fields {
    /// Scheme, host and perhaps port of its API, such as `https://registry.example.com`.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Permit plain HTTP for the endpoint. Content is then protected only by its digest, and credentials not at all.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_plain_http: Option<bool>,
    /// Permit private or loopback addresses for the endpoint and the allowed hosts.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_private_addresses: Option<bool>,
    /// A further host, or host:port, to which it may send requests and credentials. Can be given several times.
    #[arg(long = "allow-host", value_name = "HOST")]
    allow_hosts: Vec<String>,
    /// Certificates (PEM) of authorities to trust in addition to the system's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Another endpoint with the same content, which is used while the endpoint is away or limits our requests. Can be
    /// given several times, in the order in which to use them; '' for none.
    #[arg(long = "fallback-endpoint", value_name = "URL")]
    fallback_endpoints: Vec<String>,
    /// How many requests it may get in which time, such as 5000/1d; `none` leaves it to the upstream.
    #[arg(long, value_name = "REQUESTS/LENGTH", value_parser = budget)]
    budget: Option<BudgetFlag>,
    /// The user name of the login.
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
                let mut upstream = Upstream { kind: UpstreamKind::from(kind).into(), ..Default::default() };
                fields.write(&mut upstream, &mut Mask::default())?;
                let request = CreateUpstreamRequest { upstream_id, upstream: Some(upstream), ..Default::default() };
                let created = upstreams.create_upstream(request).await?.into_inner();
                output.one(&created)?;
                tell_trouble(session, created.name).await;
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
                let (name, etag) = (names::full("upstreams", &name), etag.unwrap_or_default());
                let (mut upstream, mut mask) = (Upstream { name, etag, ..Default::default() }, Mask::default());
                fields.write(&mut upstream, &mut mask)?;
                let request = UpdateUpstreamRequest { upstream: Some(upstream), update_mask: mask.finish("upstream")? };
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

/// Reports problems with a new upstream that show within a moment. It is created in any case.
async fn tell_trouble(session: &Session, name: String) {
    let mut request = tonic::Request::new(ValidateUpstreamRequest { name });
    request.set_timeout(LOOK_LIMIT);
    let Ok(answer) = session.upstreams().validate_upstream(request).await else { return };
    let answer = answer.into_inner();
    if let Some(failed) = answer.steps.iter().find(|step| step.state() == State::Failed) {
        note(&format!("it does not work yet: {}", failed.message));
    }
}

impl Fields {
    /// Writes the given options.
    fn write(self, upstream: &mut Upstream, mask: &mut Mask) -> Result<(), Error> {
        mask.set("endpoint", &mut upstream.endpoint, self.endpoint);
        mask.set("allow_plain_http", &mut upstream.allow_plain_http, self.allow_plain_http);
        mask.set("allow_private_addresses", &mut upstream.allow_private_addresses, self.allow_private_addresses);
        mask.set_list("allow_hosts", &mut upstream.allow_hosts, self.allow_hosts);
        mask.set_list("fallback_endpoints", &mut upstream.fallback_endpoints, self.fallback_endpoints);
        mask.set("budget", &mut upstream.budget, self.budget.map(|BudgetFlag(budget)| budget));
        let certificates = match self.ca_file {
            Some(file) if file.as_os_str().is_empty() => Some(String::new()),
            Some(file) => Some(read_file(&file)?),
            None => None,
        };
        mask.set("ca_certificates", &mut upstream.ca_certificates, certificates);
        mask.set("username", &mut upstream.username, self.username);
        let password = match self.password_file {
            Some(file) => Some(read_file(&file)?),
            None if self.password_stdin => Some(read_text(std::io::stdin(), "standard input")?),
            None => None,
        };
        let password = password.map(|password| password.trim_end_matches(['\r', '\n']).to_owned());
        mask.set("password", &mut upstream.password, password);
        Ok(())
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

    fn write(fields: Fields) -> (Upstream, Vec<String>) {
        let (mut upstream, mut mask) = (Upstream::default(), Mask::default());
        fields.write(&mut upstream, &mut mask).unwrap();
        (upstream, mask.finish("upstream").unwrap().unwrap().paths)
    }

    #[test]
    fn fields_that_are_given_are_in_the_mask_also_when_they_clear() {
        let fields = Fields {
            allow_plain_http: Some(false),
            allow_hosts: vec![String::new()],
            ca_file: Some(PathBuf::new()),
            username: Some("me".to_owned()),
            ..Default::default()
        };
        let (upstream, paths) = write(fields);
        assert_eq!(paths, ["allow_plain_http", "allow_hosts", "ca_certificates", "username"]);
        assert_eq!((upstream.allow_hosts.len(), upstream.username.as_str()), (0, "me"));
    }

    #[test]
    fn a_password_file_loses_only_its_last_line_break() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, " se cret \n").unwrap();
        let (upstream, paths) = write(Fields { password_file: Some(file), ..Default::default() });
        assert_eq!((upstream.password.as_str(), paths), (" se cret ", vec!["password".to_owned()]));
    }
}
