//! What `up` prints when it is ready.

use std::io::{self, Write};
use std::path::PathBuf;

use super::listeners::Addresses;

/// What a newcomer needs to know.
pub(super) struct Welcome {
    pub(super) addresses: Addresses,
    /// What clients write in front of a repository's name.
    pub(super) registry: String,
    pub(super) folder: PathBuf,
    /// The file with a generated first key.
    pub(super) first_key: PathBuf,
    /// Whether the operator chose the first key.
    pub(super) chosen_key: bool,
    /// Whether registry and API have TLS.
    pub(super) is_tls: bool,
    /// The certificate authority that clients must trust, if it was created here.
    pub(super) authority: Option<PathBuf>,
}

impl Welcome {
    /// Writes it. It never contains a key, only the command that reads one.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Addresses { api, operations, .. } = self.addresses;
        let registry = &self.registry;
        let scheme = if self.is_tls { "https" } else { "http" };
        let file = quoted(&self.first_key.to_string_lossy());
        let is_in_file = !self.chosen_key && self.first_key.exists();
        let key = if is_in_file { format!("\"$(cat {file})\"") } else { quoted("<key id>:<secret>") };
        writeln!(out, "Entrepot is ready.\n")?;
        writeln!(out, "  registry    {registry}")?;
        writeln!(out, "  API         {scheme}://{api}")?;
        writeln!(out, "  operations  http://{operations}")?;
        writeln!(out, "  data        {}", self.folder.display())?;
        if self.chosen_key {
            writeln!(out, "  first key   the one in ENTREPOT_BOOTSTRAP_KEY")?;
        } else if is_in_file {
            writeln!(out, "  first key   cat {file}")?;
        } else {
            writeln!(out, "  first key   is not in {file} any more; lost? set ENTREPOT_BOOTSTRAP_KEY")?;
        }
        if let Some(authority) = &self.authority {
            write_trust(out, registry, &authority.display().to_string())?;
        }
        writeln!(out, "\nTry it in another shell:\n")?;
        let authority =
            self.authority.as_ref().map(|path| format!(" ENTREPOT_CA={}", quoted(&path.display().to_string())));
        let authority = authority.unwrap_or_default();
        writeln!(out, "  export ENTREPOT_API={scheme}://{api}{authority} ENTREPOT_KEY={key}")?;
        writeln!(out, "  entrepot upstream create quay --kind quay && entrepot rule create quay --upstream quay")?;
        writeln!(
            out,
            "  entrepot login-password | docker login --username AWS --password-stdin {registry} && docker pull \
             {registry}/quay/prometheus/busybox:latest\n"
        )
    }
}

/// The commands that make docker and containerd on this machine trust the registry. On other machines the file has to
/// be copied there.
fn write_trust(out: &mut dyn Write, registry: &str, authority: &str) -> io::Result<()> {
    let authority = quoted(authority);
    let (docker, containerd) =
        (format!("/etc/docker/certs.d/{registry}"), format!("/etc/containerd/certs.d/{registry}"));
    writeln!(out, "\nThe certificate is this registry's own. As root, for docker and for containerd:\n")?;
    writeln!(out, "  install -D -m 644 {authority} {docker}/ca.crt")?;
    writeln!(out, "  install -D -m 644 {authority} {containerd}/ca.crt")?;
    writeln!(out, r#"  printf '[host."https://{registry}"]\n  ca = "{containerd}/ca.crt"\n' >{containerd}/hosts.toml"#)
}

/// A word quoted for shells.
fn quoted(word: &str) -> String {
    let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b':' | b'_' | b'-' | b'.' | b'='));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(first_key: PathBuf, chosen_key: bool) -> String {
        written_with(first_key, chosen_key, None)
    }

    fn written_with(first_key: PathBuf, chosen_key: bool, authority: Option<&str>) -> String {
        let addr = |port: u16| ([127, 0, 0, 1], port).into();
        let welcome = Welcome {
            addresses: Addresses { registry: addr(5000), api: addr(5001), operations: addr(5002) },
            registry: "127.0.0.1:5000".to_owned(),
            folder: "/var/lib/entrepot".into(),
            first_key,
            chosen_key,
            is_tls: authority.is_some(),
            authority: authority.map(Into::into),
        };
        let mut out = vec![];
        welcome.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_line_that_reads_a_new_key_is_ready_to_paste_and_the_key_is_not_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("it's mine");
        std::fs::write(&file, "AK1:s3cret_-\n").unwrap();
        let text = written(file.clone(), false);
        let quoted = format!("'{}'", file.display().to_string().replace('\'', r"'\''"));
        assert!(text.contains(&format!("\n  first key   cat {quoted}\n")), "{text}");
        let line = format!("\n  export ENTREPOT_API=http://127.0.0.1:5001 ENTREPOT_KEY=\"$(cat {quoted})\"\n");
        assert!(text.contains(&line), "{text}");
        assert!(text.contains("docker login --username AWS --password-stdin 127.0.0.1:5000 &&"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }

    #[test]
    fn an_authority_of_its_own_is_shown_with_the_lines_that_make_it_trusted() {
        let text = written_with("/nowhere/first-key".into(), true, Some("/data/tls/authority.crt"));
        for line in [
            "export ENTREPOT_API=https://127.0.0.1:5001 ENTREPOT_CA=/data/tls/authority.crt ENTREPOT_KEY=",
            "install -D -m 644 /data/tls/authority.crt /etc/docker/certs.d/127.0.0.1:5000/ca.crt\n",
            "\\n  ca = \"/etc/containerd/certs.d/127.0.0.1:5000/ca.crt\"\\n' >/etc/containerd/certs.d/127.0.0.1:5000/hosts.toml\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn without_the_file_it_says_where_the_first_key_is() {
        assert!(written("/nowhere/first-key".into(), true).contains("the one in ENTREPOT_BOOTSTRAP_KEY"));
        let text = written("/nowhere/first-key".into(), false);
        assert!(text.contains("is not in /nowhere/first-key any more"), "{text}");
        assert!(text.contains("ENTREPOT_KEY='<key id>:<secret>'"), "{text}");
    }
}
