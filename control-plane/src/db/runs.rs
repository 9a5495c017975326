//! Comparisons of store and index: who makes one, and which were complete.

use std::time::Duration;

use uuid::Uuid;

use super::row::column;
use super::{Error, Tx};

/// Keeps two control planes from beginning a run at once.
const LOCK: i64 = 0x7265_636f_6e63_696c;

/// Begins a run for `holder`, or none if another one has its lease or the last one has ended less than `pause` ago. A
/// run whose lease has ended is over, and was not complete.
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

/// Renews a run's lease; says whether it had not ended.
pub(crate) async fn renew(tx: &Tx<'_>, run: Uuid, length: Duration) -> Result<bool, Error> {
    const SQL: &str = "-- runs.renew
        UPDATE reconcile_runs SET lease_until = now() + make_interval(secs => $2)
         WHERE uid = $1 AND end_time IS NULL AND lease_until > now()";
    Ok(tx.execute(SQL, &[&run, &length.as_secs_f64()]).await? > 0)
}

/// Ends a run that has looked at everything, if its lease has not ended before.
pub(crate) async fn complete(tx: &Tx<'_>, run: Uuid) -> Result<bool, Error> {
    const SQL: &str = "-- runs.complete
        UPDATE reconcile_runs SET end_time = now(), is_complete = true
         WHERE uid = $1 AND end_time IS NULL AND lease_until > now()";
    Ok(tx.execute(SQL, &[&run]).await? > 0)
}

/// Forgets runs that have ended a month ago, and says how many.
pub(crate) async fn prune(tx: &Tx<'_>) -> Result<u64, Error> {
    const SQL: &str = "-- runs.prune
        DELETE FROM reconcile_runs WHERE end_time < now() - interval '30 days'";
    tx.execute(SQL, &[]).await
}
