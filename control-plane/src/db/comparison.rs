//! The queries with which a comparison of store and index reads tables whose rows follow records.

use std::collections::HashMap;

use tokio_postgres::Row;
use uuid::Uuid;

use super::row::{column, corrupt, understood};
use super::{Error, Tx};

/// A row whose record the store lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compared {
    /// Whether the row shows something, as opposed to a deletion.
    pub(crate) is_live: bool,
    /// The version of the record with the same content; `None` if the row has changed since it was compared.
    pub(crate) version: Option<String>,
}

impl Compared {
    pub(super) fn from_row(row: &Row) -> Result<(usize, Self), Error> {
        let n = usize::try_from(column::<i64>(row, "n")?).map_err(|error| corrupt("n", error))?;
        Ok((n, Self { is_live: column(row, "is_live")?, version: column(row, "record_version")? }))
    }
}

/// The range of an incarnation's rows that is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) incarnation: Uuid,
    /// Rows above this one,
    pub(crate) above: String,
    /// and up to this one.
    pub(crate) until: String,
}

/// The queries for one table: rows whose records are listed, and rows whose records are not.
pub(crate) struct Table<Id> {
    /// For each of the given incarnations and ids that has a row: its position, whether it is live, and the version
    /// that it remembers.
    pub(super) compared: &'static str,
    /// The live rows in some ranges, except those with the given incarnations and ids, after one of both, at most a
    /// given number.
    pub(super) unlisted: &'static str,
    /// The id of a row.
    pub(super) id: fn(&Row) -> Result<Id, Error>,
}

impl<Id> Table<Id> {
    /// The rows for `listed`: for each index into `listed` the row, if there is one.
    pub(crate) async fn compared(
        &self,
        tx: &Tx<'_>,
        listed: &[(Uuid, String)],
    ) -> Result<HashMap<usize, Compared>, Error> {
        let (incarnations, ids) = columns(listed);
        tx.query(self.compared, &[&incarnations, &ids]).await?.iter().map(Compared::from_row).collect()
    }

    /// At most `limit` live rows of these ranges, after `after`, which are not among `listed`.
    pub(crate) async fn unlisted(
        &self,
        tx: &Tx<'_>,
        parts: &[Part],
        listed: &[(Uuid, String)],
        after: &(Uuid, String),
        limit: i64,
    ) -> Result<Vec<(Uuid, Id)>, Error> {
        let of_parts: Vec<Uuid> = parts.iter().map(|part| part.incarnation).collect();
        let above: Vec<&str> = parts.iter().map(|part| part.above.as_str()).collect();
        let until: Vec<&str> = parts.iter().map(|part| part.until.as_str()).collect();
        let (of_listed, listed) = columns(listed);
        let (last, id) = after;
        let rows = tx.query(self.unlisted, &[&of_parts, &above, &until, &of_listed, &listed, last, id, &limit]).await?;
        understood(tx, &rows, |row| Ok((column(row, "incarnation")?, (self.id)(row)?)))
    }
}

fn columns(listed: &[(Uuid, String)]) -> (Vec<Uuid>, Vec<&str>) {
    listed.iter().map(|(incarnation, id)| (*incarnation, id.as_str())).unzip()
}
