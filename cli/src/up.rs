//! `entrepot up`: a whole registry in one process, on embedded defaults.
//!
//! Both planes are started side by side and talk over gRPC only, as they would on two machines. The data plane serves
//! from the published snapshot, so that after the first start neither Postgres nor the control plane is needed for
//! pulls. What was started last is stopped first; Postgres goes last of all.

mod listeners;
mod parent_death;
mod place;
pub mod postgres;
pub(crate) mod privileges;
mod process;
mod tls;
mod welcome;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::ExitCode;
use std::time::Duration;

use entrepot_control_plane::Reflection;
use entrepot_domain::Secret;
use entrepot_runtime::config::{ByteSize, Setting as _};
use entrepot_runtime::program::Signals;
use entrepot_runtime::{LogFormat, Telemetry, chain, telemetry};
use entrepot_trust::access_key;
use url::Url;

use crate::args::Environment;
use crate::error::Error;
use listeners::Sockets;
use process::{Options, Process};

pub(crate) use place::{Place, PlaceArgs};
pub(crate) use privileges::drop_most_privileges;

/// What libraries tell of their own is told by the planes, in their words.
const LOG_FILTER: &str = "info,deadpool=error,refinery_core=off,tokio_postgres=warn";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Its first start makes an administrator's key, in the file first-key of the data folder, and prints the line that reads
it; or it takes the one in ENTREPOT_BOOTSTRAP_KEY.

Examples:
  entrepot up
  ENTREPOT_BOOTSTRAP_KEY=admin:<secret> entrepot up --data-dir /srv/entrepot --registry-listen 0.0.0.0:5000
  entrepot up --registry-listen 0.0.0.0:443 --tls-certificate-file registry.crt --tls-key-file registry.key
  entrepot up --database-url postgres://entrepot@db.example/entrepot --external-url https://registry.example")]
pub(crate) struct Args {
    #[command(flatten)]
    place: place::PlaceArgs,

    /// Where registry clients such as docker connect.
    #[arg(long, value_name = "ADDR", default_value_t = local(5000))]
    registry_listen: SocketAddr,

    /// Where the gRPC API listens.
    #[arg(long, value_name = "ADDR", default_value_t = local(5001))]
    api_listen: SocketAddr,

    /// Where probes and Prometheus connect: /livez, /readyz, /metrics.
    #[arg(long, value_name = "ADDR", default_value_t = local(5002))]
    operations_listen: SocketAddr,

    #[command(flatten)]
    tls: tls::Args,

    /// Let the API be clear text away from loopback: access keys then cross the network readable.
    #[arg(long)]
    allow_plain_api: bool,

    /// Let the registry be clear text away from loopback: logins and content then cross the network readable.
    #[arg(long)]
    allow_plain_registry: bool,

    /// Let the API not describe itself to tools such as grpcurl.
    #[arg(long)]
    no_reflection: bool,

    /// Where clients reach the registry, if something stands between; without it, their Host header says so.
    #[arg(long, value_name = "URL", value_parser = external_url)]
    external_url: Option<Url>,

    /// The largest blob that is cached, such as `8GiB`; a larger one is passed through to each client.
    #[arg(long, value_name = "SIZE", default_value = "100GiB", value_parser = size)]
    largest_blob: u64,

    /// For how long a damaged object of the store is kept when nothing leads to it any more.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = Duration::from_text)]
    damaged_kept: Duration,

    /// How log lines look, on standard error: `text` or `json`.
    #[arg(long, value_name = "FORMAT", default_value_t)]
    log_format: LogFormat,

    /// What is logged, such as `warn` or `info,entrepot_data_plane=debug`.
    #[arg(long, value_name = "FILTER", default_value = LOG_FILTER)]
    log_filter: String,
}

pub(crate) async fn run(args: Box<Args>, environment: Environment) -> Result<ExitCode, Error> {
    let telemetry = Telemetry::init(telemetry::Config {
        service: "entrepot",
        instance: "up".to_owned(),
        log_format: args.log_format,
        log_filter: args.log_filter.clone(),
        otlp: None,
    });
    let telemetry = telemetry.map_err(|error| Error::Usage(chain(&error).to_string()))?;
    entrepot_runtime::descriptors::raise();
    let is_new = !args.place.exists(&environment)?;
    let bootstrap_key = environment.bootstrap_key.as_ref().map(|text| bootstrap_key(text, is_new)).transpose()?;
    let mut signals = Signals::new().map_err(|error| Error::Failed(format!("cannot listen for signals: {error}")))?;
    // A taken port is told before anything is made.
    let sockets = Sockets::bind(&args)?;
    drop_most_privileges();
    entrepot_runtime::allocator::give_back_in_background();
    let place = args.place.open(&environment).await?;
    let tls = args.tls.files(&place.folder, &sockets.names(&args))?;
    let options = Options {
        external_url: args.external_url.clone(),
        largest_blob: args.largest_blob,
        damaged_kept: args.damaged_kept,
        bootstrap_key,
        reflection: if args.no_reflection { Reflection::Closed } else { Reflection::Open },
        authority: tls.as_ref().and_then(|files| files.authority.clone()),
    };
    let listeners = sockets.with_tls(tls.as_ref())?;
    let mut process = Process::new(place, listeners, options, telemetry.metrics()).await?;
    let outcome = tokio::select! {
        biased;
        () = signals.received() => Ok(()),
        outcome = Box::pin(process.run()) => outcome,
    };
    process.stop(signals).await;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// The key of ENTREPOT_BOOTSTRAP_KEY, if it can be one. That it is guessed at once is said here only for a registry that
/// is new: elsewhere the key may exist, and goes on.
fn bootstrap_key(text: &Secret<std::ffi::OsString>, is_new: bool) -> Result<Secret<String>, Error> {
    let bad = |why: &dyn std::fmt::Display| Error::Usage(format!("ENTREPOT_BOOTSTRAP_KEY: {why}"));
    let text = text.expose().to_str().ok_or_else(|| bad(&"must be text"))?;
    let (id, secret) = access_key::parse_pair(text).map_err(|error| bad(&error))?;
    let checked = if is_new { access_key::check_chosen(&id, &secret) } else { access_key::check_length(&secret) };
    checked.map_err(|error| bad(&error))?;
    Ok(Secret::new(text.to_owned()))
}

fn external_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}"))?;
    let legal =
        matches!(url.scheme(), "http" | "https") && url.has_host() && url.path() == "/" && url.query().is_none();
    if legal {
        Ok(url)
    } else {
        Err("must be scheme, host and perhaps port, such as https://registry.example".to_owned())
    }
}

fn size(text: &str) -> Result<u64, String> {
    ByteSize::from_text(text).map(|ByteSize(bytes)| bytes)
}

const fn local(port: u16) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bootstrap_key_is_checked_before_anything_starts() {
        let read = |text: &str, is_new| bootstrap_key(&Secret::new(text.into()), is_new);
        assert_eq!(read("admin:correct-horse", true).unwrap().expose(), "admin:correct-horse");
        for text in ["admin", "admin:short", ":correct-horse", "admin:<secret>", "admin-key:admin-key"] {
            assert!(read(text, true).unwrap_err().to_string().starts_with("ENTREPOT_BOOTSTRAP_KEY"), "{text}");
        }
        assert!(read("admin:changeme", false).is_ok() && read("admin:short", false).is_err());
    }

    #[test]
    fn an_external_url_is_scheme_host_and_port() {
        assert!(external_url("https://registry.example:8443").is_ok());
        for text in ["registry.example", "ftp://registry.example", "https://registry.example/v2/"] {
            assert!(external_url(text).is_err(), "{text}");
        }
    }
}
