//! Brings the schema up to date.

use deadpool_postgres::Object;

use super::error::{is_away, is_contended};
use super::{Db, Error};

mod embedded {
    refinery::embed_migrations!("../migrations");
}

/// An arbitrary lock number; held while migrations run.
const LOCK: i64 = 0x656e_7472_6570_6f74;

impl Db {
    /// Applies missing migrations, while no other control plane does.
    ///
    /// # Errors
    /// [`Error::TooOld`] if the schema is too new for this release.
    pub(crate) async fn migrate(&self) -> Result<(), Error> {
        // The connection is taken out of the pool: its settings and its lock end with it.
        let mut client = Object::take(self.pool.get().await?);
        client.batch_execute("SET statement_timeout = '10min'; SET lock_timeout = '1min'").await?;
        client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await?;

        check_release(&client).await?;
        // Everybody would have to wait behind a migration that waits for a table, so it is given up and tried again.
        client.batch_execute("SET lock_timeout = '5s'").await?;
        // A newer release may have applied migrations that this one does not have.
        let runner = embedded::migrations::runner().set_abort_missing(false);
        let report = runner.run_async(&mut *client).await.map_err(migrate_error)?;
        for migration in report.applied_migrations() {
            tracing::info!(migration.name = migration.name(), "applied migration `{migration}`");
        }
        check_release(&client).await
    }
}

async fn check_release(client: &tokio_postgres::Client) -> Result<(), Error> {
    const SQL: &str = "-- migrate.check_release
        SELECT oldest_release FROM registry";
    let exists = client.query_one("SELECT to_regclass('registry') IS NOT NULL", &[]).await?;
    if !exists.get::<_, bool>(0) {
        return Ok(());
    }
    let Some(row) = client.query_opt(SQL, &[]).await? else { return Ok(()) };
    let oldest_release: String = row.get(0);
    let own = env!("CARGO_PKG_VERSION");
    if release(&oldest_release) > release(own) { Err(Error::TooOld { oldest_release, own }) } else { Ok(()) }
}

/// The numbers of a release such as `1.2.3`.
fn release(text: &str) -> Vec<u64> {
    text.split(['.', '-']).map_while(|number| number.parse().ok()).collect()
}

fn migrate_error(error: refinery::Error) -> Error {
    let mut next = std::error::Error::source(&error);
    while let Some(source) = next {
        match source.downcast_ref::<tokio_postgres::Error>() {
            Some(source) if is_away(source) => return Error::Away(error.into()),
            Some(source) if is_contended(source) => return Error::Contended(error.into()),
            Some(_) | None => next = source.source(),
        }
    }
    Error::Migrate(error.into())
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert!(release("0.10.0") > release("0.9.9"));
        assert!(release("1.0.0") > release("0.99.0"));
        assert_eq!(release("0.1.0"), release("0.1.0"));
    }
}
