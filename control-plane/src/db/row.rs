//! Reads columns into the domain's types, and skips rows that this release does not understand.
//!
//! During an upgrade, a fleet has control planes of two releases. A row of the newer one may contain words that are not
//! known here, or be marked for newer readers. Such a row is left out of lists, and asking for it by name is an error;
//! it never gets in the way of other rows.

use std::fmt::Display;
use std::str::FromStr;

use entrepot_proto::convert::READER;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use super::{Error, Tx};

/// The column's value.
pub(super) fn column<'r, T: FromSql<'r>>(row: &'r Row, column: &'static str) -> Result<T, Error> {
    row.try_get(column).map_err(|error| corrupt(column, error))
}

/// The column's text, parsed.
pub(super) fn parsed<T: FromStr<Err: Display>>(row: &Row, name: &'static str) -> Result<T, Error> {
    column::<&str>(row, name)?.parse().map_err(|error| corrupt(name, error))
}

/// The column's text, parsed, if it is not null.
pub(super) fn parsed_opt<T: FromStr<Err: Display>>(row: &Row, name: &'static str) -> Result<Option<T>, Error> {
    let text = column::<Option<&str>>(row, name)?;
    text.map(str::parse).transpose().map_err(|error| corrupt(name, error))
}

/// The column's texts, parsed.
pub(super) fn parsed_all<T: FromStr<Err: Display>>(row: &Row, name: &'static str) -> Result<Vec<T>, Error> {
    let texts = column::<Vec<&str>>(row, name)?;
    texts.into_iter().map(str::parse).collect::<Result<_, _>>().map_err(|error| corrupt(name, error))
}

/// The error for a column with an invalid value.
pub(super) fn corrupt(column: &'static str, why: impl Display) -> Error {
    Error::Corrupt { column, why: why.to_string() }
}

/// Whether this release may use a row, according to its column `minimum_reader`.
pub(super) fn readable(row: &Row) -> Result<(), Error> {
    let minimum: i32 = column(row, "minimum_reader")?;
    match minimum <= READER {
        true => Ok(()),
        false => Err(corrupt("minimum_reader", format!("is {minimum}, and this is {READER}"))),
    }
}

/// The result of reading the row called `item`; adds that name to an error about a row that is not understood.
pub(super) fn named<T>(read: Result<T, Error>, item: impl FnOnce() -> String) -> Result<T, Error> {
    match read {
        Err(Error::Corrupt { column, why }) => Err(Error::NotUnderstood { item: item(), column, why }),
        read => read,
    }
}

/// The column's text, or a substitute if it cannot be read, for naming a row.
pub(super) fn id(row: &Row, column: &'static str) -> String {
    row.try_get::<_, &str>(column).unwrap_or("?").to_owned()
}

/// The understood ones of these rows. All others are left out, counted and logged.
pub(super) fn understood<T>(
    tx: &Tx<'_>,
    rows: &[Row],
    read: impl Fn(&Row) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut all = Understood::new(i64::MAX);
    all.take(tx, rows, read)?;
    Ok(all.found)
}

/// At most `limit` understood rows, in the order of their ids. `sql` takes the id after which they begin and the number
/// of rows; `id` is the column.
pub(super) async fn page<T>(
    tx: &Tx<'_>,
    sql: &str,
    id: &'static str,
    after: &str,
    limit: i64,
    read: fn(&Row) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let (mut page, mut after) = (Understood::new(limit), after.to_owned());
    while let Some(wanted) = page.wanted() {
        let rows = tx.query(sql, &[&after, &wanted]).await?;
        if let Some(last) = page.take(tx, &rows, read)? {
            after = column(last, id)?;
        }
    }
    Ok(page.found)
}

/// A page of understood rows. Rows that are left out are replaced by later ones.
pub(super) struct Understood<T> {
    pub(super) found: Vec<T>,
    limit: i64,
    is_done: bool,
}

impl<T> Understood<T> {
    pub(super) fn new(limit: i64) -> Self {
        Self { found: Vec::new(), limit, is_done: false }
    }

    /// How many rows to fetch next; `None` once the page is full, or there are no more rows.
    pub(super) fn wanted(&self) -> Option<i64> {
        let left = self.limit - i64::try_from(self.found.len()).unwrap_or(i64::MAX);
        Some(left).filter(|left| *left > 0 && !self.is_done)
    }

    /// Takes the rows that were fetched for [`Understood::wanted`]. Returns the last one, after which the next rows
    /// begin.
    pub(super) fn take<'r>(
        &mut self,
        tx: &Tx<'_>,
        rows: &'r [Row],
        read: impl Fn(&Row) -> Result<T, Error>,
    ) -> Result<Option<&'r Row>, Error> {
        let wanted = self.wanted().unwrap_or_default();
        self.is_done = i64::try_from(rows.len()).is_ok_and(|count| count < wanted);
        for row in rows {
            match read(row) {
                Ok(value) => self.found.push(value),
                Err(error @ Error::NotUnderstood { .. }) => tx.left_out.note(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(rows.last())
    }
}
