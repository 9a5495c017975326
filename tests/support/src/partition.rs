//! Drops packets with nftables. In contrast to a [`crate::Link`] that stalls, nothing is acknowledged, and new
//! connections cannot be opened.
//!
//! The rules name only loopback addresses of this process. They belong to an `nft` that ends with this process, however
//! that ends; the kernel then removes them.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::program::Host;
use crate::wait_until;

/// Whether packets can be dropped on this machine.
static WORKS: LazyLock<bool> = LazyLock::new(|| match try_once() {
    Ok(()) => true,
    Err(problem) => {
        eprintln!("SKIPPED: dropped packets, since nftables does not work here: {problem}");
        false
    }
});

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// While this exists, no packet reaches or leaves some addresses.
#[derive(Debug)]
pub struct Partition {
    table: String,
    nft: Child,
}

impl Partition {
    /// Whether packets can be dropped, which needs root, `nft` and kernel support. If not, this is printed once.
    pub fn works() -> bool {
        *WORKS
    }

    /// From now on, drops packets to and from these addresses.
    ///
    /// # Panics
    /// If that is not possible; see [`Partition::works`].
    pub async fn of(addresses: &[SocketAddr]) -> Self {
        let table = format!("entrepot_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let mut nft = start(&["-i"], Stdio::piped()).expect("nft can be started");
        let stdin = nft.stdin.as_mut().expect("it was asked for");
        stdin.write_all(rules(&table, addresses).as_bytes()).expect("nft reads its rules");
        let partition = Self { table, nft };
        wait_until(Duration::from_secs(10), "nft drops packets", async || partition.is_in_force(addresses.len())).await;
        partition
    }

    /// Whether all its rules are active.
    fn is_in_force(&self, addresses: usize) -> bool {
        let listed = Command::new("nft").args(["list", "table", "inet", &self.table]).output();
        let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).matches(" drop").count());
        listed.unwrap_or_default() == 2 * addresses
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        // The kernel removes a table together with its owner.
        let _ = self.nft.kill();
        let _ = self.nft.wait();
    }
}

fn rules(table: &str, addresses: &[SocketAddr]) -> String {
    let mut text = format!("add table inet {table} {{ flags owner ; }}\n");
    text += &format!("add chain inet {table} lost {{ type filter hook input priority 0 ; }}\n");
    for address in addresses {
        assert!(address.ip().is_loopback(), "{address} is not of this machine alone");
        let (ip, port) = (address.ip(), address.port());
        text += &format!("add rule inet {table} lost ip daddr {ip} tcp dport {port} drop\n");
        text += &format!("add rule inet {table} lost ip saddr {ip} tcp sport {port} drop\n");
    }
    text
}

/// Makes `nft` check rules, and the kernel accept them for a moment.
fn try_once() -> Result<(), String> {
    let table = format!("entrepot_{}_probe", std::process::id());
    let mut nft = start(&["-f", "-"], Stdio::piped()).map_err(|error| format!("nft: {error}"))?;
    let rules = rules(&table, &[Host::free().at(9)]);
    let written = nft.stdin.take().map(|mut stdin| stdin.write_all(rules.as_bytes()));
    let output = nft.wait_with_output().map_err(|error| error.to_string())?;
    match written {
        Some(Ok(())) if output.status.success() => Ok(()),
        _ => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

fn start(arguments: &[&str], stdin: Stdio) -> std::io::Result<Child> {
    Command::new("nft").args(arguments).stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
}
