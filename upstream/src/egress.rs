//! Decides to which addresses requests may go. It is a decision over plain values: the client asks for every literal
//! address, and for every address of a name at the moment of connecting.
//!
//! Upstreams say where to go next (token realms, redirects), and names say where that is. Without this check an
//! upstream could make a node talk to its neighbours, to itself, or to its cloud's metadata service.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use entrepot_domain::Upstream;
use entrepot_domain::upstream::HostAndPort;

/// Why an address was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is private, and private addresses are not allowed there.
    Private,
    /// It is link-local, a metadata service, multicast, or reserved. These are never allowed.
    Forbidden,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => {
                "is private; the upstream's `allow_private_addresses` covers its own endpoint and `allow_hosts` only"
            }
            Self::Forbidden => "is link-local, a metadata service, multicast or reserved, and never allowed",
        })
    }
}

/// Whether private addresses are allowed at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedReach {
    /// Public addresses only.
    Public,
    /// Private addresses, too.
    Private,
}

/// The places where one upstream may use private addresses.
#[derive(Clone, Debug)]
pub struct Policy {
    leaves: Vec<HostAndPort>,
}

impl Policy {
    /// The policy of `upstream`: if private addresses are allowed, then for its endpoint's own host and port and for
    /// its `allow_hosts`.
    pub fn of(upstream: &Upstream) -> Self {
        if !upstream.allow_private_addresses {
            return Self { leaves: Vec::new() };
        }
        let mut leaves = upstream.allow_hosts.clone();
        leaves.push(upstream.endpoint.host_and_port());
        Self { leaves }
    }

    /// Whether private addresses are allowed at `host` and `port`.
    pub fn leave(&self, host: &str, port: u16) -> AllowedReach {
        if self.leaves.iter().any(|place| place.covers(host, port)) {
            AllowedReach::Private
        } else {
            AllowedReach::Public
        }
    }

    /// Whether private addresses are allowed at any place.
    pub fn gives_leave(&self) -> bool {
        !self.leaves.is_empty()
    }

    /// Checks the address `ip` of `host` at `port`.
    ///
    /// # Errors
    /// Why the address is refused.
    pub fn check(&self, ip: IpAddr, host: &str, port: u16) -> Result<(), Refusal> {
        check(ip, self.leave(host, port))
    }
}

/// Checks an address.
///
/// # Errors
/// Why it is refused.
pub fn check(ip: IpAddr, leave: AllowedReach) -> Result<(), Refusal> {
    match (Reach::of(ip), leave) {
        (Reach::Public, _) | (Reach::Private, AllowedReach::Private) => Ok(()),
        (Reach::Private, AllowedReach::Public) => Err(Refusal::Private),
        (Reach::Forbidden, _) => Err(Refusal::Forbidden),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Public,
    Private,
    Forbidden,
}

impl Reach {
    fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => Self::of_v6(ip),
        }
    }

    /// Source: IANA's registry of special-purpose IPv4 addresses, and the documentation of clouds' metadata services.
    fn of_v4(ip: Ipv4Addr) -> Self {
        match ip.octets() {
            // Metadata services of Alibaba and Azure; the latter has a public address.
            [100, 100, 100, 200] | [168, 63, 129, 16] => Self::Forbidden,
            [10 | 127, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [198, 18 | 19, ..] => {
                Self::Private
            }
            [0, ..] | [169, 254, ..] | [224..=255, ..] => Self::Forbidden,
            [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 51, 100, _] | [203, 0, 113, _] => Self::Forbidden,
            _ => Self::Public,
        }
    }

    /// Source: IANA's registry of special-purpose IPv6 addresses. An address that contains an IPv4 address is judged by
    /// that.
    fn of_v6(ip: Ipv6Addr) -> Self {
        let carried = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match ip.segments() {
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Private,
            // Mapped, translated and (for ::/96) compatible addresses, and the well-known prefix of NAT64.
            [0, 0, 0, 0, 0, 0xffff, high, low]
            | [0, 0, 0, 0, 0xffff, 0, high, low]
            | [0, 0, 0, 0, 0, 0, high, low]
            | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => carried(high, low),
            // 6to4.
            [0x2002, high, low, ..] => carried(high, low),
            // ISATAP.
            [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => match carried(high, low) {
                Self::Public => Self::Public,
                Self::Private | Self::Forbidden => Self::Forbidden,
            },
            // Metadata services of Amazon and Google, which have private addresses.
            [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => Self::Forbidden,
            [0xfc00..=0xfdff, ..] => Self::Private,
            // Protocol assignments (such as Teredo and ORCHID) and documentation.
            [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Self::Forbidden,
            [0x2000..=0x3fff, ..] => Self::Public,
            // Link-local, site-local, multicast, discard-only, local NAT64, and everything that is not assigned.
            _ => Self::Forbidden,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_address_is_decided() {
        use Reach::{Forbidden, Private, Public};
        let table = [
            (Public, "1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.1.1.1 128.0.0.1 169.253.255.255"),
            (
                Public,
                "172.15.255.255 172.32.0.0 192.0.1.1 192.167.1.1 198.17.1.1 198.20.0.0 203.0.114.1 223.255.255.255",
            ),
            (Private, "10.0.0.1 10.255.255.255 127.0.0.1 127.255.255.254 172.16.0.1 172.31.255.255 192.168.0.1"),
            (Private, "100.64.0.1 100.127.255.255 198.18.0.1 198.19.255.255"),
            (
                Forbidden,
                "0.0.0.0 0.1.2.3 169.254.169.254 169.254.0.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255",
            ),
            (Forbidden, "192.0.0.192 192.0.2.1 192.88.99.1 198.51.100.1 203.0.113.1 100.100.100.200 168.63.129.16"),
            (Public, "2606:4700::1111 2001:4860:4860::8888 2a00:1450::1 2001:200::1"),
            (Private, "::1 fc00::1 fd12:3456::1"),
            (Forbidden, ":: fe80::1 febf::1 fec0::1 ff02::1 100::1 2001:db8::1 2001::1 3fff::1 4000::1 64:ff9b:1::1"),
            (Forbidden, "fd00:ec2::254 fd20:ce::254"),
            // IPv4 inside IPv6: mapped, translated, compatible, NAT64, 6to4, ISATAP.
            (
                Public,
                "::ffff:1.1.1.1 ::ffff:0:1.1.1.1 ::1.1.1.1 64:ff9b::1.1.1.1 2002:101:101::1 2606:4700::5efe:1.1.1.1",
            ),
            (Private, "::ffff:127.0.0.1 ::ffff:0:10.0.0.1 ::10.0.0.1 64:ff9b::10.0.0.1 2002:a00:1::1 2002:7f00:1::"),
            (
                Forbidden,
                "::ffff:169.254.169.254 64:ff9b::169.254.169.254 2002:a9fe:a9fe::1 ::169.254.169.254 ::ffff:0.0.0.0",
            ),
            (Forbidden, "2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:169.254.169.254"),
        ];
        for (expected, addresses) in table {
            for address in addresses.split(' ') {
                assert_eq!(Reach::of(address.parse().unwrap()), expected, "{address}");
            }
        }
    }

    #[test]
    fn leave_covers_the_places_it_was_given_for_and_never_the_forbidden() {
        let policy = Policy { leaves: vec!["10.0.0.1:5000".parse().unwrap(), "cdn.corp".parse().unwrap()] };
        let check = |ip: &str, host, port| policy.check(ip.parse().unwrap(), host, port);
        assert_eq!(check("10.0.0.1", "10.0.0.1", 5000), Ok(()));
        assert_eq!(check("10.0.0.1", "10.0.0.1", 5001), Err(Refusal::Private));
        assert_eq!(check("10.0.0.9", "CDN.corp", 8443), Ok(()));
        assert_eq!(check("10.0.0.9", "evil.example", 443), Err(Refusal::Private));
        assert_eq!(check("1.1.1.1", "evil.example", 443), Ok(()));
        assert_eq!(check("169.254.169.254", "cdn.corp", 80), Err(Refusal::Forbidden));
        assert_eq!(check("::ffff:169.254.169.254", "cdn.corp", 80), Err(Refusal::Forbidden));
    }
}
