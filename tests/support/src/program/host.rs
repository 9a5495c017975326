//! Addresses for programs that keep their address over a restart.
//!
//! A port that was free a moment ago may be taken when a program returns to it, if only by the near end of a
//! connection. So each program gets its own loopback address, as if it had its own machine, and ports that the kernel
//! gives to nobody.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::LazyLock;

use parking_lot::Mutex;

/// The port that a process occupies on the first address of its network.
const CLAIM: u16 = 15_999;

/// A loopback address that nothing else uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host(Ipv4Addr);

struct Network {
    octets: [u8; 2],
    used: u8,
    /// Shows other test processes that this network is taken.
    _claim: TcpListener,
}

static NETWORK: LazyLock<Mutex<Network>> = LazyLock::new(|| Mutex::new(Network::claim()));

impl Network {
    /// 127.64.0.0 to 127.191.255.0, starting at a position where other processes are unlikely to start.
    fn claim() -> Self {
        let free = (0..1000).find_map(|attempt: u32| {
            let [.., high, low] = (std::process::id().wrapping_add(attempt * 7919)).to_be_bytes();
            let octets = [64 + high % 128, low];
            let claim = TcpListener::bind((Ipv4Addr::new(127, octets[0], octets[1], 1), CLAIM)).ok()?;
            Some(Self { octets, used: 1, _claim: claim })
        });
        free.expect("loopback networks are free")
    }
}

impl Host {
    /// An unused address.
    ///
    /// # Panics
    /// After more than 250 of them.
    pub fn free() -> Self {
        let mut network = NETWORK.lock();
        assert!(network.used < 254, "this process has used up its loopback addresses");
        network.used += 1;
        let [a, b] = network.octets;
        Self(Ipv4Addr::new(127, a, b, network.used))
    }

    /// A port on it. Ports from 10,000 to 30,000 are free.
    pub fn at(self, port: u16) -> SocketAddr {
        (self.0, port).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_its_own_ports() {
        let (one, other) = (Host::free(), Host::free());
        assert_ne!(one, other);
        let _one = TcpListener::bind(one.at(15_000)).unwrap();
        let _other = TcpListener::bind(other.at(15_000)).unwrap();
    }
}
