//! Networks whose word is believed.

use std::net::IpAddr;
use std::str::FromStr;

use entrepot_runtime::config::{Parsed, Reported, Section};
use ipnet::IpNet;

/// Reads `trusted_proxies`: networks, or single addresses; none unless set.
///
/// # Errors
/// If one is neither; the reader keeps the mistake.
pub fn trusted_proxies(section: &mut Section<'_>) -> Result<Vec<IpNet>, Reported> {
    let networks = section.get::<Vec<Parsed<Network>>>("trusted_proxies", "")?;
    Ok(networks.into_iter().map(|Parsed(Network(net))| net).collect())
}

/// A network, or one address.
struct Network(IpNet);

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let one = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse().or_else(|_| one()).map(Self).map_err(|_| "must be a network or an address, such as `10.0.0.0/8`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_may_be_single_addresses() {
        let net = |text: &str| text.parse::<Network>().map(|Network(net)| net.to_string());
        assert_eq!(net("10.0.0.0/8"), Ok("10.0.0.0/8".to_owned()));
        assert_eq!(net("10.0.0.7"), Ok("10.0.0.7/32".to_owned()));
        assert_eq!(net("fd00::1"), Ok("fd00::1/128".to_owned()));
        assert!(net("registry.example").is_err());
    }
}
