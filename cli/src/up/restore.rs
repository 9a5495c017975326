//! `entrepot admin restore`: what an operator does after the database came back from a backup.

use std::process::ExitCode;
use std::time::Duration;

use entrepot_control_plane::{Restored, restore};
use entrepot_runtime::chain;

use super::place;
use crate::args::Environment;
use crate::error::Error;
use crate::output;

const LIMIT: Duration = Duration::from_secs(180);

/// Which registry.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: place::PlaceArgs,
}

pub(crate) async fn run(args: Args, environment: Environment) -> Result<ExitCode, Error> {
    let place = args.place.open(&environment)?;
    let outcome = async {
        if let Some(postgres) = &place.postgres {
            postgres.settled(LIMIT).await.map_err(|error| Error::Failed(error.to_string()))?;
        }
        let restored = tokio::time::timeout(LIMIT, restore(place.control.clone(), &*place.store)).await;
        restored
            .map_err(|_| Error::Failed(format!("not done within {} s", LIMIT.as_secs())))?
            .map_err(|error| Error::Failed(chain(&error).to_string()))
    };
    let outcome = outcome.await;
    if let Some(postgres) = place.postgres {
        postgres.stop().await;
    }
    match outcome? {
        Restored::Raised(version) => {
            output::note(&format!("a new epoch has begun ({version}); start `entrepot up`, which repairs the index"));
        }
        Restored::NotBehind(version) => {
            output::note(&format!("the database ({version}) is not behind what is published: nothing was done"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
