//! Reads columns into the domain's types.

use std::fmt::Display;
use std::str::FromStr;

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use super::Error;

/// The column's value as it is.
pub(super) fn column<'r, T: FromSql<'r>>(row: &'r Row, column: &'static str) -> Result<T, Error> {
    row.try_get(column).map_err(|error| corrupt(column, error))
}

/// The column's text as what it means.
pub(super) fn parsed<T: FromStr<Err: Display>>(row: &Row, name: &'static str) -> Result<T, Error> {
    column::<&str>(row, name)?.parse().map_err(|error| corrupt(name, error))
}

/// The column's text, if there is one, as what it means.
pub(super) fn parsed_opt<T: FromStr<Err: Display>>(row: &Row, name: &'static str) -> Result<Option<T>, Error> {
    let text = column::<Option<&str>>(row, name)?;
    text.map(str::parse).transpose().map_err(|error| corrupt(name, error))
}

/// The column's texts as what they mean.
pub(super) fn parsed_all<T: FromStr<Err: Display>>(row: &Row, name: &'static str) -> Result<Vec<T>, Error> {
    let texts = column::<Vec<&str>>(row, name)?;
    texts.into_iter().map(str::parse).collect::<Result<_, _>>().map_err(|error| corrupt(name, error))
}

/// Says that a column holds what it should not.
pub(super) fn corrupt(column: &'static str, why: impl Display) -> Error {
    Error::Corrupt { column, why: why.to_string() }
}

/// The column `n` as indexes into what was asked.
pub(super) fn indexes(rows: &[Row]) -> Result<Vec<usize>, Error> {
    rows.iter().map(|row| usize::try_from(column::<i64>(row, "n")?).map_err(|error| corrupt("n", error))).collect()
}
