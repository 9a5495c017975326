//! Comparisons of store and index: which control plane runs one, and which were complete.

use std::time::Duration;

use uuid::Uuid;

use super::row::column;
use super::{Error, Tx};

/// Prevents two control planes from beginning a run at once.
const LOCK: i64 = 0x7265_636f_6e63_696c;

/// Begins a run for `holder`. Returns none if another control plane has the lease, or if the last run ended less than
/// `pause` ago. A run whose lease has expired has ended, and is not complete.
pub(crate) async fn begin(tx: &Tx<'_>, holder: &str, length: Duration, pause: Duration) -> Result<Option<Uuid>, Error> {
    const LOCKED: &str = "-- runs.begin: lock
        SELECT pg_advisory_xact_lock($1)";
    const END: &str = "-- runs.begin: end
        UPDATE reconcile_runs SET end_time = now() WHERE end_time IS NULL AND lease_until <= now()";
    const SQL: &str = "-- runs.begin
        INSERT INTO reconcile_runs (uid, holder, lease_until)
        SELECT $1, $2, now() + make_interval(secs => $3)
         WHERE NOT EXISTS (SELECT FROM reconcile_runs
                            WHERE end_time IS NULL
                               OR (is_complete AND end_time > now() - make_interval(secs => $4)))
        RETURNING uid";
    tx.execute(LOCKED, &[&LOCK]).await?;
    tx.execute(END, &[]).await?;
    let (uid, length, pause) = (Uuid::now_v7(), length.as_secs_f64(), pause.as_secs_f64());
    let row = tx.query_opt(SQL, &[&uid, &holder, &length, &pause]).await?;
    row.map(|row| column(&row, "uid")).transpose()
}

/// Renews a run's lease. Returns whether it had not expired.
pub(crate) async fn renew(tx: &Tx<'_>, run: Uuid, length: Duration) -> Result<bool, Error> {
    const SQL: &str = "-- runs.renew
        UPDATE reconcile_runs SET lease_until = now() + make_interval(secs => $2)
         WHERE uid = $1 AND end_time IS NULL AND lease_until > now()";
    Ok(tx.execute(SQL, &[&run, &length.as_secs_f64()]).await? > 0)
}

/// Marks a run that has checked everything as complete, if its lease has not expired.
pub(crate) async fn complete(tx: &Tx<'_>, run: Uuid) -> Result<bool, Error> {
    const SQL: &str = "-- runs.complete
        UPDATE reconcile_runs SET end_time = now(), is_complete = true
         WHERE uid = $1 AND end_time IS NULL AND lease_until > now()";
    Ok(tx.execute(SQL, &[&run]).await? > 0)
}

/// Deletes runs that ended a month ago, and returns how many.
pub(crate) async fn prune(tx: &Tx<'_>) -> Result<u64, Error> {
    const SQL: &str = "-- runs.prune
        DELETE FROM reconcile_runs WHERE end_time < now() - interval '30 days'";
    tx.execute(SQL, &[]).await
}
