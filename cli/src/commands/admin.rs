//! `entrepot admin`: operations on a registry's database in an emergency.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use entrepot_control_plane::{self as control_plane, Foreign, Reindexed, Repaired, Settings};
use entrepot_domain::ResourceId;
use entrepot_records::check_layout;
use entrepot_runtime::chain;
use entrepot_runtime::config::{Reader, environment as variables};
use entrepot_store::BlobStore;
use entrepot_store::bucket::BucketStore;
use uuid::Uuid;

use crate::args::Environment;
use crate::error::Error;
use crate::output;
use crate::up::{Place, PlaceArgs};

/// The limit for all of it: an index of millions of images takes its time. After it, the work can be repeated.
const LIMIT: Duration = Duration::from_secs(6 * 60 * 60);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// After the database was restored from a backup: allow changes to its configuration again.
    ///
    /// A database that is older than what nodes run is not published, since it could lead the nodes back in time. This
    /// command begins a new epoch with the configuration that the database has now, and rebuilds the index from the
    /// store.
    #[command(after_help = RESTORE)]
    Restore {
        #[command(flatten)]
        args: Args,

        /// Accept a database that is not a backup of this registry, such as a new one because there is no backup. Its
        /// configuration, which may be empty, replaces what is published.
        #[arg(long)]
        adopt: bool,
    },

    /// Rebuild the index of repositories, images and tags from the store.
    ///
    /// Control planes do this bit by bit while they run; this command does it at once.
    #[command(after_help = REINDEX)]
    Reindex(Args),
}

const RESTORE: &str = "\
Examples:
  entrepot admin restore --config /etc/entrepot/control-plane.toml   control planes may run or not
  entrepot admin restore --config                                    configured by the environment alone
  entrepot admin restore --data-dir /var/lib/entrepot                while `entrepot up` is stopped";

const REINDEX: &str = "\
Examples:
  entrepot admin reindex --config /etc/entrepot/control-plane.toml   control planes may run or not
  entrepot admin reindex --data-dir /var/lib/entrepot                while `entrepot up` is stopped";

/// The registry to work on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A control plane's configuration file; without FILE, only the environment is used. Without this option, the
    /// registry is one of `entrepot up`.
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    #[expect(clippy::option_option, reason = "it may be there without a file")]
    config: Option<Option<PathBuf>>,

    #[command(flatten)]
    place: PlaceArgs,
}

/// The operation on the opened registry.
#[derive(Clone, Copy)]
enum Work {
    Restore(Foreign),
    Reindex,
}

impl Command {
    pub(crate) async fn run(self, environment: Environment) -> Result<ExitCode, Error> {
        let (args, work) = match self {
            Self::Restore { args, adopt } => {
                (args, Work::Restore(if adopt { Foreign::Adopted } else { Foreign::Refused }))
            }
            Self::Reindex(args) => (args, Work::Reindex),
        };
        let done = match &args.config {
            Some(file) => of_cluster(file.as_deref(), work).await?,
            None => of_place(&args.place, &environment, work).await?,
        };
        output::note(&done);
        Ok(ExitCode::SUCCESS)
    }
}

/// Works on what control planes share: a database and a bucket.
async fn of_cluster(file: Option<&Path>, work: Work) -> Result<String, Error> {
    let settings = Reader::load(file, variables())
        .and_then(|mut reader| Settings::read(&mut reader))
        .map_err(|problems| Error::Usage(problems.to_string()))?;
    // Nothing is uploaded here, but a store needs an owner.
    let owner: ResourceId = format!("admin-{}", Uuid::new_v4().simple()).parse().expect("letters and digits are an id");
    let store = BucketStore::open(settings.store.bucket, owner).await.map_err(|error| failed(&error))?;
    check_layout(&store).await.map_err(|error| failed(&error))?;
    work.on(settings.database, &store).await
}

/// Works on the registry of a stopped `entrepot up`.
async fn of_place(place: &PlaceArgs, environment: &Environment, work: Work) -> Result<String, Error> {
    let Place { postgres, control, store, .. } = place.open(environment).await?;
    let done = async {
        if let Some(postgres) = &postgres {
            postgres.settled(Duration::from_secs(180)).await.map_err(|error| Error::Failed(error.to_string()))?;
        }
        work.on(control, &*store).await
    };
    let done = done.await;
    if let Some(postgres) = postgres {
        postgres.stop().await;
    }
    done
}

impl Work {
    /// Does the work, and returns its result as text.
    async fn on(self, database: control_plane::Config, store: &dyn BlobStore) -> Result<String, Error> {
        let work = async {
            match self {
                Self::Restore(foreign) => {
                    let restored = control_plane::restore(database, store, foreign).await?;
                    let epoch = if restored.raised {
                        "a new epoch has begun"
                    } else {
                        "the database was not behind the published snapshot"
                    };
                    Ok(format!("{epoch} ({}); {}", restored.version, summary(&restored.index)))
                }
                Self::Reindex => Ok(summary(&control_plane::reindex(database, store).await?)),
            }
        };
        let done = tokio::time::timeout(LIMIT, work).await;
        let done =
            done.map_err(|_| Error::Failed(format!("not done within {} h; repeat it", LIMIT.as_secs() / 3600)))?;
        done.map_err(|error: control_plane::RestoreError| failed(&error))
    }
}

fn summary(index: &Reindexed) -> String {
    let part = |what: &str, part: &Repaired| {
        let Repaired { found, added, removed, corrected } = part;
        format!("\n  {found} {what}: {added} added, {removed} removed, {corrected} corrected")
    };
    format!(
        "the index agrees with the store:{}{}{}",
        part("repositories", &index.repositories),
        part("images", &index.images),
        part("tags", &index.tags)
    )
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Failed(chain(error).to_string())
}
