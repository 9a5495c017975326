//! CNCF Distribution, which has a mode in which it is a proxy of one upstream. Its nodes know nothing of each other.

use std::net::SocketAddr;
use std::path::Path;

use entrepot_test_support::program::{Host, probe};
use entrepot_test_support::{FakeUpstream, Program, wait_until};

use crate::client::LIMIT;

/// Where Debian's package has it.
const PROGRAM: &str = "/usr/bin/docker-registry";
const PORT: u16 = 15_000;

/// Some of them, each with a folder of its own.
pub(super) struct Distribution(Vec<(Program, SocketAddr)>);

impl Distribution {
    /// Starts `count` proxies of `upstream`. `None` if it is not installed, which is said.
    pub(super) async fn start(count: usize, upstream: &FakeUpstream, folder: &Path) -> Option<Self> {
        if !Path::new(PROGRAM).exists() {
            eprintln!(
                "SKIPPED: Distribution, since {PROGRAM} is missing: `apt-get install docker-registry` installs it"
            );
            return None;
        }
        let mut nodes = Vec::new();
        for number in 1..=count {
            let (name, at) = (format!("distribution-{number}"), Host::free().at(PORT));
            let file = folder.join(format!("{name}.yml"));
            std::fs::write(&file, configuration(&folder.join(&name), at, &upstream.url()))
                .expect("a folder is writable");
            let program = Program::new(&name, PROGRAM, folder).arg("serve").arg(file);
            program.start();
            wait_until(LIMIT, &format!("`{name}` answers"), async || {
                assert!(program.is_running(), "`{name}` has ended:\n{}", program.tail());
                probe(at, "/v2/").await.is_ok_and(|answer| answer.status == 200)
            })
            .await;
            nodes.push((program, at));
        }
        Some(Self(nodes))
    }

    /// Where they are.
    pub(super) fn urls(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(_, at)| format!("http://{at}"))
    }
}

fn configuration(folder: &Path, at: SocketAddr, upstream: &str) -> String {
    format!(
        "version: 0.1
log:
  level: error
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: {}
  cache:
    blobdescriptor: inmemory
http:
  addr: {at}
proxy:
  remoteurl: {upstream}
",
        folder.display()
    )
}
