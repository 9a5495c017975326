//! Where Redis is, and how to log in.

use std::fmt;
use std::str::FromStr;

use entrepot_domain::Secret;
use url::{Host, Url};

/// Where Redis is, and how to log in.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// The kind of servers.
    pub mode: RedisMode,
    /// The server; in the other modes, some of the Sentinels or some members of the cluster. At least one.
    pub servers: Vec<RedisServer>,
    /// The user name for Redis; none if there is only a password.
    pub username: Option<String>,
    /// The password of Redis.
    pub password: Option<Secret<String>>,
    /// The name of the master at the Sentinels.
    pub sentinel_master: Option<String>,
    /// The password of the Sentinels, which is separate from that of Redis.
    pub sentinel_password: Option<Secret<String>>,
    /// Certificate authorities to trust, in PEM; without them, the machine's are used.
    pub ca: Option<Vec<u8>>,
}

/// How Redis is kept available.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedisMode {
    /// One server, or a name that always leads to the right one.
    #[default]
    Single,
    /// Sentinels know which server is the master.
    Sentinel,
    /// Redis Cluster: each server has a share of the keys.
    Cluster,
}

impl FromStr for RedisMode {
    type Err = RedisConfigError;

    fn from_str(text: &str) -> Result<Self, RedisConfigError> {
        match text {
            "single" => Ok(Self::Single),
            "sentinel" => Ok(Self::Sentinel),
            "cluster" => Ok(Self::Cluster),
            _ => Err(RedisConfigError::Mode),
        }
    }
}

impl fmt::Display for RedisMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "single",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        })
    }
}

/// One server: `redis://host:6379/0`, or `rediss://` for TLS. It contains no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisServer {
    pub(super) host: String,
    /// `None` means the default, which depends on the mode.
    pub(super) port: Option<u16>,
    pub(super) tls: bool,
    pub(super) database: i64,
}

impl FromStr for RedisServer {
    type Err = RedisConfigError;

    fn from_str(text: &str) -> Result<Self, RedisConfigError> {
        let url = Url::parse(text).map_err(|_| RedisConfigError::Url)?;
        let tls = match url.scheme() {
            "redis" => false,
            "rediss" => true,
            _ => return Err(RedisConfigError::Url),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RedisConfigError::Credentials);
        }
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            // Without the brackets of a URL.
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(Host::Domain(_)) | None => return Err(RedisConfigError::Url),
        };
        let database = match url.path().trim_matches('/') {
            "" => 0,
            number => number.parse::<u16>().map_err(|_| RedisConfigError::Url)?.into(),
        };
        if url.query().is_some() || url.fragment().is_some() {
            return Err(RedisConfigError::Url);
        }
        Ok(Self { host, port: url.port(), tls, database })
    }
}

impl fmt::Display for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let brackets = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{}{}{}", brackets.0, self.host, brackets.1)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        write!(f, "/{}", self.database)
    }
}

/// What is wrong with a configuration. No value is repeated, since it may be a secret in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisConfigError {
    #[error("must be `single`, `sentinel` or `cluster`")]
    Mode,
    #[error("must be like `redis://host:6379/0`, or `rediss://` for TLS")]
    Url,
    /// It contains a user name or a password, where others can read it.
    #[error("must not hold a user or a password: they have keys of their own")]
    Credentials,
    #[error("names no server")]
    NoServer,
    /// Several servers are given, of which only one would be used.
    #[error("names several servers; with more than one, there must be Sentinels or a cluster")]
    OneServer,
    /// The master's name for Sentinel is missing.
    #[error("with Sentinel, the name of the master must be set")]
    NoMaster,
    /// Some servers use TLS and others do not, or they name different databases.
    #[error("all servers must agree on TLS and on the database")]
    Mixed,
    /// It names a database, which Redis Cluster does not have.
    #[error("a cluster has only the database 0")]
    ClusterDatabase,
    /// Authorities are given without TLS, so they would have no effect and passwords would be sent in clear text.
    #[error("authorities are given, so all servers must be `rediss://`")]
    CaWithoutTls,
    /// The certificates cannot be read.
    #[error("the authorities' certificates cannot be read as PEM")]
    Ca,
}

impl RedisConfig {
    /// Checks that its parts fit together.
    pub(crate) fn check(&self) -> Result<(), RedisConfigError> {
        let first = self.servers.first().ok_or(RedisConfigError::NoServer)?;
        if self.servers.iter().any(|server| (server.tls, server.database) != (first.tls, first.database)) {
            return Err(RedisConfigError::Mixed);
        }
        if self.ca.is_some() && !first.tls {
            return Err(RedisConfigError::CaWithoutTls);
        }
        match self.mode {
            RedisMode::Single if self.servers.len() > 1 => Err(RedisConfigError::OneServer),
            RedisMode::Sentinel if self.sentinel_master.is_none() => Err(RedisConfigError::NoMaster),
            RedisMode::Cluster if first.database != 0 => Err(RedisConfigError::ClusterDatabase),
            RedisMode::Single | RedisMode::Sentinel | RedisMode::Cluster => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_they_are_written() {
        for (text, whole) in [
            ("redis://cache", "redis://cache/0"),
            ("rediss://cache.example:7000/3", "rediss://cache.example:7000/3"),
            ("redis://127.0.0.1:6380/", "redis://127.0.0.1:6380/0"),
            ("redis://[::1]:6380", "redis://[::1]:6380/0"),
        ] {
            let server: RedisServer = text.parse().unwrap();
            assert_eq!(server.to_string(), whole);
            assert_eq!(whole.parse(), Ok(server));
        }
    }

    #[test]
    fn what_is_no_server_is_refused_and_not_repeated() {
        for text in ["", "cache:6379", "http://cache", "redis://", "redis://cache/x", "redis://cache?a=b"] {
            assert_eq!(text.parse::<RedisServer>(), Err(RedisConfigError::Url), "{text}");
        }
        for text in ["redis://:hunter22@cache", "redis://hunter22@cache", "rediss://app:hunter22@cache:1/2"] {
            let error = text.parse::<RedisServer>().unwrap_err();
            assert_eq!(error, RedisConfigError::Credentials);
            assert!(!error.to_string().contains("hunter"));
        }
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let config = |mode, servers: &[&str], master: Option<&str>| RedisConfig {
            mode,
            servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
            username: None,
            password: None,
            sentinel_master: master.map(str::to_owned),
            sentinel_password: None,
            ca: None,
        };
        use RedisMode::{Cluster, Sentinel, Single};
        assert_eq!(config(Single, &["redis://a"], None).check(), Ok(()));
        assert_eq!(config(Single, &[], None).check(), Err(RedisConfigError::NoServer));
        assert_eq!(config(Single, &["redis://a", "redis://b"], None).check(), Err(RedisConfigError::OneServer));
        assert_eq!(config(Sentinel, &["redis://a"], None).check(), Err(RedisConfigError::NoMaster));
        assert_eq!(config(Sentinel, &["redis://a", "redis://b"], Some("m")).check(), Ok(()));
        assert_eq!(config(Cluster, &["redis://a", "rediss://b"], None).check(), Err(RedisConfigError::Mixed));
        assert_eq!(config(Cluster, &["redis://a/1"], None).check(), Err(RedisConfigError::ClusterDatabase));
        let with_ca = |server| RedisConfig { ca: Some(vec![]), ..config(Single, &[server], None) };
        assert_eq!(with_ca("redis://a").check(), Err(RedisConfigError::CaWithoutTls));
        assert_eq!(with_ca("rediss://a").check(), Ok(()));
    }
}
