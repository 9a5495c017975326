//! Database errors, classified by what to do about them.

use std::error::Error as _;

use deadpool_postgres::PoolError;
use tokio_postgres::error::{DbError, SqlState};

/// Why a database operation failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Postgres cannot be reached, is starting or stopping, or took too long. Try again later.
    #[error("the database is away")]
    Away(#[source] Source),
    /// Another transaction was in the way. Try again now.
    #[error("another change was in the way")]
    Contended(#[source] Source),
    /// A unique constraint is violated: the value is taken.
    #[error("`{}` is taken", .0.name())]
    Taken(Unique),
    /// Something still refers to the row to delete, or the row that was referred to is gone.
    #[error("the reference `{0}` does not hold")]
    Reference(String),
    /// A column has a value that this program cannot have written.
    #[error("the column `{column}` holds what cannot be read: {why}")]
    Corrupt { column: &'static str, why: String },
    /// The row is of another release, and can be neither shown nor changed here.
    #[error("`{item}` is of another release, and not understood here: its {column} {why}")]
    NotUnderstood {
        /// The row's name, such as `rules/hub`.
        item: String,
        column: &'static str,
        /// Why it is not understood.
        why: String,
    },
    /// The schema is only for newer releases.
    #[error("the database needs release {oldest_release} or newer, this is {own}: upgrade this control plane")]
    TooOld {
        /// The oldest release that may use it.
        oldest_release: String,
        /// This release.
        own: &'static str,
    },
    /// Migrations could not be applied.
    #[error("the database's schema could not be brought up to date")]
    Migrate(#[source] Source),
    /// A bug here, or a database with another schema.
    #[error("the database refused a statement")]
    Refused(#[source] Source),
}

type Source = Box<dyn std::error::Error + Send + Sync>;

/// The unique constraints that callers can violate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unique {
    UpstreamId,
    RuleId,
    RulePrefix,
    PrincipalId,
    KeyId,
    RepositoryName,
    TemplateId,
    TemplatePrefix,
}

impl Unique {
    const ALL: [Self; 8] = [
        Self::UpstreamId,
        Self::RuleId,
        Self::RulePrefix,
        Self::PrincipalId,
        Self::KeyId,
        Self::RepositoryName,
        Self::TemplateId,
        Self::TemplatePrefix,
    ];

    fn of(constraint: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|unique| unique.name() == constraint)
    }

    /// The constraint's name, which is part of the contract with the migrations.
    fn name(self) -> &'static str {
        match self {
            Self::UpstreamId => "upstreams_upstream_id_key",
            Self::RuleId => "rules_rule_id_key",
            Self::RulePrefix => "rules_prefix_key",
            Self::PrincipalId => "principals_principal_id_key",
            Self::KeyId => "access_keys_pkey",
            Self::RepositoryName => "repositories_name_key",
            Self::TemplateId => "templates_template_id_key",
            Self::TemplatePrefix => "templates_prefix_key",
        }
    }
}

impl Error {
    /// Whether the same call may succeed later, without anybody changing anything.
    pub(crate) fn may_retry(&self) -> bool {
        match self {
            Self::Away(_) | Self::Contended(_) => true,
            Self::Taken(_)
            | Self::Reference(_)
            | Self::Corrupt { .. }
            | Self::NotUnderstood { .. }
            | Self::TooOld { .. }
            | Self::Migrate(_)
            | Self::Refused(_) => false,
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        let constraint = error.as_db_error().and_then(DbError::constraint).unwrap_or_default();
        match error.code() {
            Some(&SqlState::UNIQUE_VIOLATION) => match Unique::of(constraint) {
                Some(unique) => Self::Taken(unique),
                None => Self::Refused(error.into()),
            },
            Some(&SqlState::FOREIGN_KEY_VIOLATION) => Self::Reference(constraint.to_owned()),
            Some(_) if is_contended(&error) => Self::Contended(error.into()),
            Some(_) | None if is_away(&error) => Self::Away(error.into()),
            Some(_) | None => Self::Refused(error.into()),
        }
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            // Whatever prevents a connection can only be fixed by waiting, or elsewhere.
            PoolError::Backend(error) => Self::Away(error.into()),
            PoolError::Timeout(_)
            | PoolError::Closed
            | PoolError::NoRuntimeSpecified
            | PoolError::PostCreateHook(_) => Self::Away(error.into()),
        }
    }
}

/// Whether another transaction was in the way.
pub(super) fn is_contended(error: &tokio_postgres::Error) -> bool {
    const CONTENDED: [SqlState; 3] =
        [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE, SqlState::LOCK_NOT_AVAILABLE];
    error.code().is_some_and(|state| CONTENDED.contains(state))
}

/// Whether `error` is about the connection and not about the statement.
pub(super) fn is_away(error: &tokio_postgres::Error) -> bool {
    // 08 connection, 53 resources, 57 operator (shutdown, statement_timeout), 25P03 idle in transaction, 25006 a server
    // that has just become a standby.
    let says_so =
        |state: &SqlState| ["08", "53", "57", "25P03", "25006"].iter().any(|class| state.code().starts_with(class));
    match error.code() {
        Some(state) => says_so(state),
        // Not an error from Postgres: the connection broke, or could not be opened.
        None => error.is_closed() || error.source().is_some_and(|source| source.is::<std::io::Error>()),
    }
}
