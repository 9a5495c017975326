//! The answers to requests with an id.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::row::column;
use super::{Error, Tx};

/// How long a retry gets the first answer.
const KEPT: TimeDelta = TimeDelta::hours(24);

/// What is known about a request id.
pub(crate) enum Claim {
    /// Nothing: it now belongs to this transaction.
    New,
    /// The request was answered before.
    Answered {
        /// The sealed hash of the request.
        sealed_hash: Vec<u8>,
        /// The answer, unless it contained a secret.
        response: Option<Vec<u8>>,
    },
}

/// Claims a request id. Waits while another transaction that has claimed it is open.
pub(crate) async fn claim(
    tx: &Tx<'_>,
    principal_uid: Uuid,
    request_id: Uuid,
    sealed_hash: &[u8],
    now: DateTime<Utc>,
) -> Result<Claim, Error> {
    const FORGET: &str = "-- requests.claim: forget
        DELETE FROM requests WHERE principal_uid = $1 AND request_id = $2 AND create_time < $3";
    const INSERT: &str = "-- requests.claim: insert
        INSERT INTO requests (principal_uid, request_id, sealed_hash, create_time) VALUES ($1, $2, $3, $4)
        ON CONFLICT ON CONSTRAINT requests_pkey DO NOTHING";
    const SELECT: &str = "-- requests.claim: select
        SELECT sealed_hash, response FROM requests WHERE principal_uid = $1 AND request_id = $2";
    tx.execute(FORGET, &[&principal_uid, &request_id, &(now - KEPT)]).await?;
    if tx.execute(INSERT, &[&principal_uid, &request_id, &sealed_hash, &now]).await? == 1 {
        return Ok(Claim::New);
    }
    let row = tx.query_opt(SELECT, &[&principal_uid, &request_id]).await?;
    // The row was deleted between the two statements, for example by another control plane's clean-up.
    let row = row.ok_or_else(|| Error::Contended("the request id was just forgotten".into()))?;
    Ok(Claim::Answered { sealed_hash: column(&row, "sealed_hash")?, response: column(&row, "response")? })
}

/// Keeps the answer to a request.
pub(crate) async fn answer(tx: &Tx<'_>, principal_uid: Uuid, request_id: Uuid, response: &[u8]) -> Result<(), Error> {
    const SQL: &str = "-- requests.answer
        UPDATE requests SET response = $3 WHERE principal_uid = $1 AND request_id = $2";
    tx.execute(SQL, &[&principal_uid, &request_id, &response]).await?;
    Ok(())
}

/// Deletes at most `limit` requests that nobody retries any more, and returns how many.
pub(crate) async fn prune(tx: &Tx<'_>, now: DateTime<Utc>, limit: i64) -> Result<u64, Error> {
    const SQL: &str = "-- requests.prune
        DELETE FROM requests WHERE (principal_uid, request_id) IN (
            SELECT principal_uid, request_id FROM requests WHERE create_time < $1 LIMIT $2)";
    tx.execute(SQL, &[&(now - KEPT), &limit]).await
}
