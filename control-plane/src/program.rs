//! A control plane as a program: it opens everything that it needs, however long that takes, and serves until it is
//! told to stop.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::{ResourceId, Secret};
use entrepot_runtime::{Clock, Condition, Health, Metrics, Program, Tasks, chain};
use entrepot_settings::open_store;
use entrepot_store::Store;
use entrepot_trust::access_key::{self, check_length};
use tracing::error;
use uuid::Uuid;

use crate::app::{ControlPlane, Deps, StartError};
use crate::plane::FirstKey;
use crate::settings::Settings;

/// The service name in telemetry.
pub const SERVICE: &str = "entrepot-control-plane";

/// How long a start may take before its state is checked again; there is no final limit.
const START_LOOK: Duration = Duration::from_secs(60);

type Failure = Box<dyn Error + Send + Sync>;

/// Why the environment's bootstrap key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {what}")]
pub struct BootstrapKeyProblem {
    variable: &'static str,
    what: String,
}

/// Reads `ENTREPOT_BOOTSTRAP_KEY`, or the file that `ENTREPOT_BOOTSTRAP_KEY_FILE` names, from the environment.
///
/// # Errors
/// If both are set, the file cannot be read, or the key is invalid.
pub fn bootstrap_key(environment: &[(String, String)]) -> Result<Option<Secret<String>>, BootstrapKeyProblem> {
    const KEY: &str = "ENTREPOT_BOOTSTRAP_KEY";
    const FILE: &str = "ENTREPOT_BOOTSTRAP_KEY_FILE";
    let get = |name| environment.iter().find(|(found, text)| found == name && !text.is_empty()).map(|(_, text)| text);
    let problem = |variable, what: String| BootstrapKeyProblem { variable, what };
    let (variable, text) = match (get(KEY), get(FILE)) {
        (Some(_), Some(_)) => return Err(problem(KEY, format!("is set, and {FILE} too: unset one of them"))),
        (None, None) => return Ok(None),
        (Some(text), None) => (KEY, text.clone()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path);
            (FILE, text.map_err(|error| problem(FILE, format!("`{path}` cannot be read: {error}")))?)
        }
    };
    let text = text.trim_end();
    let (_, secret) = access_key::parse_pair(text).map_err(|error| problem(variable, error.to_string()))?;
    check_length(&secret).map_err(|error| problem(variable, error.to_string()))?;
    Ok(Some(Secret::new(text.to_owned())))
}

/// Runs a control plane until its end.
pub async fn run(settings: Settings, bootstrap_key: Option<Secret<String>>) -> ExitCode {
    let instance = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let program = match Program::start(settings.telemetry.config(SERVICE, instance)) {
        Ok(program) => program,
        Err(error) => {
            eprintln!("{}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let health = program.health();
    // The conditions are added before anybody can ask: without any condition the program would seem ready. The control
    // plane's own condition is added now, too, so that the program does not seem ready between opening the store and
    // the start.
    let (_, store) = (health.condition(crate::app::CONDITION), health.condition("store"));
    let around = Around { clock: program.clock(), tasks: program.tasks(), health, metrics: program.metrics(), store };
    match settings.operations.listener.bind(&around.tasks) {
        // Probes are answered while everything else is being set up.
        Ok(listener) => program.serve_operations(listener).await,
        Err(error) => {
            error!("{error}");
            return ExitCode::FAILURE;
        }
    }
    let drain = settings.drain.drain;
    program.run(drain, Box::pin(control_plane(settings, bootstrap_key, around))).await
}

/// The program's parts that a control plane needs.
struct Around {
    clock: Clock,
    tasks: Tasks,
    health: Health,
    metrics: Metrics,
    /// Whether the store is available.
    store: Condition,
}

/// Opens what the control plane needs, and serves.
async fn control_plane(
    settings: Settings,
    bootstrap_key: Option<Secret<String>>,
    around: Around,
) -> Result<(), Failure> {
    let Around { clock, tasks, health, metrics, store: condition } = around;
    let stopping = tasks.stopping();
    let owner = owner();
    let opening = open_store(&settings.store.bucket, &owner, &condition);
    let Some(bucket) = stopping.run_until_cancelled(opening).await else {
        return Ok(());
    };
    let store: Store = Arc::new(bucket?);
    condition.ready();
    // Before the store is open, connections are refused, so that a load balancer uses another control plane.
    settings.api.listener.warn_of_clear_text();
    let listener = settings.api.listener.bind(&tasks)?;
    let deps = Deps {
        store,
        cluster_key: settings.keys.cluster_key,
        snapshot_signer: settings.keys.snapshot_signer,
        snapshot_trust: settings.keys.snapshot_trust,
        clock,
        tasks,
        health,
        metrics,
        bootstrap_key,
        first_key: settings.api.first_key_file.map_or(FirstKey::None, FirstKey::File),
        reflection: settings.api.reflection,
    };
    let config =
        settings.database.with_connections(settings.api.connections).with_trusted_proxies(settings.api.trusted_proxies);
    let plane = ControlPlane::new(config, deps);
    tokio::select! {
        served = plane.clone().serve(listener) => Ok(served?),
        refused = wait_for_refusal(&plane) => Err(refused.into()),
    }
}

/// Waits until the start is given up; if it never is, waits for ever.
async fn wait_for_refusal(plane: &ControlPlane) -> StartError {
    loop {
        match plane.ready(START_LOOK).await {
            Ok(_) => std::future::pending().await,
            Err(StartError::NotYet { .. }) => {}
            Err(refused @ StartError::Refused { .. }) => return refused,
        }
    }
}

/// The owner of this process's uploads. There are none, but a store needs an owner.
fn owner() -> ResourceId {
    format!("control-plane-{}", Uuid::new_v4().simple()).parse().expect("letters, digits and hyphens are an id")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        let environment: Vec<_> = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let key = bootstrap_key(&environment).map_err(|error| error.to_string())?;
        Ok(key.map(|key| key.expose().clone()))
    }

    #[test]
    fn a_bootstrap_key_comes_from_the_environment_or_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "admin:correct horse\n").unwrap();
        let path = file.path().to_str().unwrap();
        let key = Ok(Some("admin:correct horse".to_owned()));
        assert_eq!(read(&[("ENTREPOT_BOOTSTRAP_KEY", "admin:correct horse")]), key);
        assert_eq!(read(&[("ENTREPOT_BOOTSTRAP_KEY_FILE", path)]), key);
        assert_eq!(read(&[("ENTREPOT_BOOTSTRAP_KEY", "")]), Ok(None));
        let both = read(&[("ENTREPOT_BOOTSTRAP_KEY", "admin:correct horse"), ("ENTREPOT_BOOTSTRAP_KEY_FILE", path)]);
        assert!(both.unwrap_err().contains("unset one"));
    }

    #[test]
    fn a_bootstrap_key_that_is_none_is_refused_and_not_quoted() {
        for text in ["admin", "admin:short", ":correct horse"] {
            let error = read(&[("ENTREPOT_BOOTSTRAP_KEY", text)]).unwrap_err();
            assert!(error.starts_with("ENTREPOT_BOOTSTRAP_KEY: ") && !error.contains("short:"), "{error}");
        }
        let error = read(&[("ENTREPOT_BOOTSTRAP_KEY_FILE", "/nowhere/key")]).unwrap_err();
        assert!(error.starts_with("ENTREPOT_BOOTSTRAP_KEY_FILE: `/nowhere/key` cannot be read"), "{error}");
    }
}
