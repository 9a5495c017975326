//! nginx as a program, with what it does by itself: it speaks HTTP/1.0 to what is behind it, and buffers answers.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::program::{Host, Program};
use crate::wait_until;

/// Where clients find it, on its own host.
const PORT: u16 = 15_000;
const LIMIT: Duration = Duration::from_secs(30);

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    _program: Program,
    address: SocketAddr,
}

impl Nginx {
    /// Starts one that passes every request on to one of `servers`, in turn, and has no other setting.
    ///
    /// # Panics
    /// If nginx is not installed, or does not start.
    pub async fn start(servers: &[SocketAddr], folder: &Path) -> Self {
        let address = Host::free().at(PORT);
        let file = folder.join("nginx.conf");
        std::fs::write(&file, configuration(address, servers, folder)).expect("the folder can be written to");
        let program = Program::new("nginx", installed(), folder).arg("-e").arg("stderr").arg("-c").arg(&file);
        program.start();
        wait_until(LIMIT, "nginx listens", async || {
            assert!(program.is_running(), "nginx has ended:\n{}", program.log());
            TcpStream::connect(address).await.is_ok()
        })
        .await;
        Self { _program: program, address }
    }

    /// Where clients find it, such as `http://127.0.0.1:15000`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn configuration(address: SocketAddr, servers: &[SocketAddr], folder: &Path) -> String {
    let folder = folder.display();
    // One process, which ends with whoever has started it.
    let mut text = format!("daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nevents {{}}\nhttp {{\n");
    text += "    access_log off;\n";
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(text, "    {kind}_temp_path {folder}/nginx-{kind};");
    }
    text += "    upstream registry {\n";
    for server in servers {
        let _ = writeln!(text, "        server {server};");
    }
    let _ = writeln!(text, "    }}\n    server {{\n        listen {address};");
    text + "        location / { proxy_pass http://registry; }\n    }\n}\n"
}

fn installed() -> PathBuf {
    let places = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"].map(PathBuf::from);
    let found = places.into_iter().find(|place| place.exists());
    found.expect("nginx is not installed: `apt-get install nginx` installs it")
}
