//! Listening sockets, with errors that say what to do.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

const BACKLOG: u32 = 1024;

/// Listens on `addr`. `what` is the flag or setting that the address comes from, such as `--registry-listen`.
///
/// # Errors
/// If the address cannot be had; the text names the remedy.
pub fn bind(addr: SocketAddr, what: &str) -> io::Result<TcpListener> {
    listen(addr).map_err(|error| io::Error::new(error.kind(), explain(addr, what, &error)))
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for connections of the process before to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

fn explain(addr: SocketAddr, what: &str, error: &io::Error) -> String {
    #[expect(clippy::wildcard_enum_match_arm, reason = "there are some fifty kinds; the rest speak for themselves")]
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{addr} is taken: another process listens there, `ss -ltnp 'sport = :{}'` shows which; stop it, or choose \
             another address with {what}",
            addr.port()
        ),
        io::ErrorKind::PermissionDenied => {
            format!("{addr} may not be listened on: ports below 1024 need privileges; choose another port with {what}")
        }
        io::ErrorKind::AddrNotAvailable => format!(
            "{addr} cannot be listened on: this machine has no address {}; `ip address` shows those it has, choose \
             one with {what}",
            addr.ip()
        ),
        _ => format!("{addr} cannot be listened on ({error}); choose another address with {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_address_says_how_to_find_by_whom() {
        let first = bind("127.0.0.1:0".parse().unwrap(), "--registry-listen").unwrap();
        let addr = first.local_addr().unwrap();
        let error = bind(addr, "--registry-listen").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let text = error.to_string();
        for part in [addr.to_string(), format!("ss -ltnp 'sport = :{}'", addr.port()), "--registry-listen".to_owned()] {
            assert!(text.contains(&part), "{text}");
        }
    }

    #[tokio::test]
    async fn an_address_of_another_machine_says_so() {
        let error = bind("192.0.2.1:5000".parse().unwrap(), "--api-listen").unwrap_err();
        assert!(error.to_string().contains("no address 192.0.2.1"), "{error}");
    }
}
