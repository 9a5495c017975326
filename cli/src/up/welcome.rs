//! What `up` says when it is ready.

use std::io::{self, Write};
use std::path::PathBuf;

use entrepot_domain::Secret;

use super::listeners::Addresses;

/// What a newcomer needs to know.
pub(super) struct Welcome {
    pub(super) addresses: Addresses,
    /// What clients write before a repository's name.
    pub(super) registry: String,
    pub(super) folder: PathBuf,
    /// Whether the operator chose the first key.
    pub(super) chosen_key: bool,
}

impl Welcome {
    /// Writes it; a key that was made just now is shown here and nowhere else.
    pub(super) fn write(&self, out: &mut dyn Write, first_key: Option<&Secret<String>>) -> io::Result<()> {
        let Addresses { api, operations, .. } = self.addresses;
        let registry = &self.registry;
        let key = first_key.map_or("<key id>:<secret>", |key| key.expose());
        writeln!(out, "Entrepot is ready.\n")?;
        writeln!(out, "  registry    {registry}")?;
        writeln!(out, "  API         http://{api}")?;
        writeln!(out, "  operations  http://{operations}")?;
        writeln!(out, "  data        {}", self.folder.display())?;
        match first_key {
            Some(key) => writeln!(out, "  first key   {}   (shown this once: keep it)", key.expose())?,
            None if self.chosen_key => writeln!(out, "  first key   the one in ENTREPOT_BOOTSTRAP_KEY")?,
            None => writeln!(out, "  first key   was shown at the first start; lost? set ENTREPOT_BOOTSTRAP_KEY")?,
        }
        writeln!(out, "\nTry it in another shell:\n")?;
        writeln!(out, "  export ENTREPOT_API=http://{api} ENTREPOT_KEY={}", quoted(key))?;
        writeln!(out, "  entrepot upstream create quay --kind quay && entrepot rule create quay --upstream quay")?;
        writeln!(
            out,
            "  entrepot login-password | docker login --username AWS --password-stdin {registry} && docker pull \
             {registry}/quay/prometheus/busybox:latest\n"
        )
    }
}

/// A word as shells read it.
fn quoted(word: &str) -> String {
    let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'_' | b'-' | b'.' | b'='));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(first_key: Option<&str>, chosen_key: bool) -> String {
        let addr = |port: u16| ([127, 0, 0, 1], port).into();
        let welcome = Welcome {
            addresses: Addresses { registry: addr(5000), api: addr(5001), operations: addr(5002) },
            registry: "127.0.0.1:5000".to_owned(),
            folder: "/var/lib/entrepot".into(),
            chosen_key,
        };
        let mut out = vec![];
        welcome.write(&mut out, first_key.map(|key| Secret::new(key.to_owned())).as_ref()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_new_key_is_shown_and_ready_to_paste() {
        let text = written(Some("ak1:s3cret_-"), false);
        assert!(text.contains("first key   ak1:s3cret_-   (shown this once"), "{text}");
        assert!(text.contains("\n  export ENTREPOT_API=http://127.0.0.1:5001 ENTREPOT_KEY=ak1:s3cret_-\n"), "{text}");
        assert!(text.contains("docker login --username AWS --password-stdin 127.0.0.1:5000 &&"), "{text}");
    }

    #[test]
    fn without_a_new_key_it_says_where_the_first_one_is() {
        assert!(written(None, true).contains("the one in ENTREPOT_BOOTSTRAP_KEY"));
        let text = written(None, false);
        assert!(text.contains("was shown at the first start") && text.contains("ENTREPOT_KEY='<key id>:<secret>'"));
    }
}
