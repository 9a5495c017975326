//! For whom a proxy speaks. Only those that the operator trusts are heard: everybody else could claim to be anyone.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::HeaderName;
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Whether one of these networks has the address.
pub fn trusts(trusted: &[IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// Who has sent a request that came from `remote`: the last address of its way here that no trusted proxy has. What stands
/// before it, the client may have made up.
pub fn client(headers: &HeaderMap, remote: IpAddr, trusted: &[IpNet]) -> IpAddr {
    if !trusts(trusted, remote) {
        return remote;
    }
    let lines = headers.get_all(FORWARDED_FOR).into_iter().filter_map(|line| line.to_str().ok());
    let way: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    let mut client = remote;
    for text in way.into_iter().rev() {
        let Some(address) = address(text) else { break };
        client = address;
        if !trusts(trusted, address) {
            break;
        }
    }
    client
}

/// An address as proxies write it: some add a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse().map(|addr: std::net::SocketAddr| addr.ip()).ok();
    let address: Option<IpAddr> = text.parse().ok().or_else(bare).or_else(with_port);
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_is_not_trusted_speaks_for_nobody() {
        let headers = HeaderMap::from_iter([(FORWARDED_FOR, "198.51.100.7".parse().unwrap())]);
        let [proxy, client_address] = ["10.0.0.2", "198.51.100.7"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(client(&headers, proxy, &["10.0.0.0/8".parse().unwrap()]), client_address);
        assert_eq!(client(&headers, proxy, &["10.9.0.0/16".parse().unwrap()]), proxy);
    }
}
