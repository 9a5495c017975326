//! `config.example.toml` contains what the two programs read: every key, its default, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use entrepot_runtime::config::{Problems, Reader};
use entrepot_test_support::tls::Authority;
use entrepot_trust::{ClusterKey, SnapshotSigner};
use toml::{Table, Value};

/// A function that reads a program's settings.
type Read = fn(&mut Reader) -> Result<(), Problems>;

const PROGRAMS: [(&str, Read); 2] = [
    ("control plane", |reader| entrepot_control_plane::Settings::read(reader).map(drop)),
    ("data plane", |reader| entrepot_data_plane::Settings::read(reader).map(drop)),
];

/// Section and key.
type Place = (String, String);

/// A key in the example.
struct Example {
    value: Value,
    /// Whether it is commented out.
    is_off: bool,
    /// The comment above it.
    comment: String,
}

/// All keys in the example.
fn examples() -> BTreeMap<Place, Example> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config.example.toml");
    let text = fs::read_to_string(path).unwrap();
    text.parse::<Table>().expect("the example is TOML");
    let (mut examples, mut section, mut comment) = (BTreeMap::new(), String::new(), String::new());
    let mut in_comment = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, value, is_off)) = assignment(line) {
            in_comment = false;
            let example = Example { value, is_off, comment: comment.clone() };
            assert!(examples.insert((section.clone(), key), example).is_none(), "twice: {line}");
        } else if let Some(words) = line.strip_prefix('#') {
            if !in_comment {
                comment.clear();
            }
            in_comment = true;
            comment.push_str(words);
        } else {
            assert!(line.is_empty(), "{line}");
            (in_comment, comment) = (false, String::new());
        }
    }
    examples
}

/// The key and value of a line, and whether they are commented out.
fn assignment(line: &str) -> Option<(String, Value, bool)> {
    let (line, is_off) = line.strip_prefix("# ").map_or((line, false), |line| (line, true));
    let key = line.split_once(" = ")?.0;
    let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let table: Table = is_key.then(|| line.parse().unwrap_or_else(|error| panic!("{line}: {error}")))?;
    Some((key.to_owned(), table[key].clone(), is_off))
}

/// A value as it would be written in the environment.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) | Value::Table(_) => {
            value.to_string()
        }
    }
}

/// Which of the mutually exclusive keys are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secrets {
    Here,
    InFiles,
}

/// The example with everything enabled that goes together, and with files that exist in `folder`.
fn complete(kind: &str, secrets: Secrets, folder: &Path) -> String {
    let examples = examples();
    let files = Files::make(folder);
    let (mut text, mut last) = (String::new(), "");
    for ((section, key), example) in &examples {
        let sibling = |name: &str| examples.get(&(section.clone(), name.to_owned()));
        let of_another_kind = ["s3", "gcs", "azure"]
            .iter()
            .any(|other| *other != kind && example.comment.trim_start().starts_with(&format!("{other}:")));
        let here = key.strip_suffix("_file").and_then(sibling);
        let excluded = match secrets {
            Secrets::Here => here.is_some(),
            Secrets::InFiles => sibling(&format!("{key}_file")).is_some(),
        };
        if of_another_kind || excluded {
            continue;
        }
        if section != last {
            writeln!(text, "[{section}]").unwrap();
            last = section;
        }
        let value = match (key.as_str(), here) {
            ("kind", _) => Value::from(kind),
            (_, Some(here)) => files.with(&format!("{section}.{key}"), &self::text(&here.value)),
            _ => files.of(key).unwrap_or_else(|| example.value.clone()),
        };
        writeln!(text, "{key} = {value}").unwrap();
    }
    text
}

/// The files that the example names, created for this test.
struct Files(PathBuf);

impl Files {
    fn make(folder: &Path) -> Self {
        let authority = Authority::new();
        let (certificate, key) = authority.certificate_for(&["127.0.0.1"]);
        for (name, text) in [("tls.crt", &certificate), ("tls.key", &key), ("ca.pem", &authority.pem())] {
            fs::write(folder.join(name), text).unwrap();
        }
        fs::write(folder.join("service-account.json"), "{}").unwrap();
        ClusterKey::load_or_generate(folder.join("cluster.key")).unwrap();
        let signer = SnapshotSigner::load_or_generate(folder.join("snapshot.key")).unwrap();
        signer.public_key().save(folder.join("snapshot.pub")).unwrap();
        Self(folder.to_owned())
    }

    /// The value of a key that names a file, unless the file contains a secret.
    fn of(&self, key: &str) -> Option<Value> {
        let path = |name: &str| Value::from(self.0.join(name).to_str().unwrap());
        match key {
            "tls_certificate_file" => Some(path("tls.crt")),
            "tls_key_file" => Some(path("tls.key")),
            "ca_file" => Some(path("ca.pem")),
            "service_account_file" => Some(path("service-account.json")),
            "cluster_key_file" => Some(path("cluster.key")),
            "snapshot_seed_file" => Some(path("snapshot.key")),
            "snapshot_public_key_files" => Some(Value::Array(vec![path("snapshot.pub")])),
            "first_key_file" => Some(path("first-key")),
            _ => {
                assert!(!key.ends_with("_file"), "the test has no file for {key}");
                None
            }
        }
    }

    fn with(&self, name: &str, text: &str) -> Value {
        let path = self.0.join(name);
        fs::write(&path, format!("{text}\n")).unwrap();
        Value::from(path.to_str().unwrap())
    }
}

/// Lets a program read a file, and returns the reader.
fn read(program: Read, file: &Path) -> Result<Reader, Problems> {
    let mut reader = Reader::load(Some(file), [])?;
    program(&mut reader).map(|()| reader)
}

#[test]
fn everything_in_the_example_goes_with_both_programs() {
    for kind in ["s3", "gcs", "azure"] {
        for secrets in [Secrets::Here, Secrets::InFiles] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("entrepot.toml");
            fs::write(&file, complete(kind, secrets, folder.path())).unwrap();
            for (name, program) in PROGRAMS {
                let problems = read(program, &file).err().map(|problems| problems.to_string());
                assert_eq!(problems, None, "{name}, {kind}, secrets {secrets:?}");
            }
        }
    }
}

#[test]
fn the_example_has_every_key_that_is_read_with_its_default_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("entrepot.toml");
    fs::write(&file, complete("s3", Secrets::Here, folder.path())).unwrap();
    let mut read_keys: BTreeMap<Place, Option<String>> = BTreeMap::new();
    for (name, program) in PROGRAMS {
        let reader = read(program, &file).unwrap_or_else(|problems| panic!("{name}: {problems}"));
        for described in reader.described() {
            let place = (described.section.clone(), described.key.clone());
            let default = described.default.clone();
            let before = read_keys.insert(place, default.clone());
            assert!(before.is_none_or(|before| before == default), "two defaults for {described:?}");
        }
    }
    let examples = examples();
    let (read, shown): (BTreeSet<_>, BTreeSet<_>) = (read_keys.keys().collect(), examples.keys().collect());
    assert_eq!(read.difference(&shown).collect::<Vec<_>>(), [] as [&&Place; 0], "read, and not in the example");
    assert_eq!(shown.difference(&read).collect::<Vec<_>>(), [] as [&&Place; 0], "in the example, and not read");
    for (place, example) in &examples {
        let shown = (!example.is_off).then(|| text(&example.value));
        assert_eq!(shown, read_keys[place], "the default of {place:?}");
    }
}

#[test]
fn every_key_of_the_example_is_explained() {
    for (place, example) in examples() {
        assert!(example.comment.trim_end().ends_with('.'), "{place:?}: {:?}", example.comment);
    }
}

#[test]
fn no_mistake_shows_a_secret() {
    const SECRET: &str = "hunter22";
    let mut file = String::new();
    let examples = examples();
    for (section, key) in examples.keys() {
        if examples.contains_key(&(section.clone(), format!("{key}_file"))) {
            for value in
                [format!("{SECRET}://{SECRET}:{SECRET}@{SECRET}:{SECRET}/{SECRET}"), format!("={SECRET} {SECRET}=\n")]
            {
                writeln!(file, "[{section}]\n{key} = {}", Value::from(value)).unwrap();
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("entrepot.toml");
                fs::write(&path, &file).unwrap();
                for (name, program) in PROGRAMS {
                    let problems = read(program, &path).err().map(|problems| problems.to_string()).unwrap_or_default();
                    assert!(!problems.contains(SECRET), "{name}: {problems}");
                }
                file.clear();
            }
        }
    }
}
