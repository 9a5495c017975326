//! What a reader accepts, and everything that it refuses.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use url::Url;

use super::*;
use crate::LogFormat;

/// A reader of this file and these overriding variables.
fn reader(file: &str, environment: &[(&str, &str)]) -> Result<Reader, Problems> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("entrepot.toml");
    std::fs::write(&path, file).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Reader::load(Some(&path), environment)
}

/// The mistakes, one per line.
fn mistakes(mut reader: Reader, foreign: &[&str]) -> Vec<String> {
    reader.finish(foreign).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_environment_comes_before_the_file_and_the_file_before_the_default() {
    let file = "[registry]\nlisten = '127.0.0.1:1'\ntrusted_proxies = ['10.0.0.0/8', 'fd00::/8']\nopen = true";
    let environment = [
        ("ENTREPOT__REGISTRY__LISTEN", "127.0.0.1:2"),
        ("ENTREPOT__REGISTRY__NAMES", "a, b,"),
        ("ENTREPOT__REGISTRY__SHARE", "0.5"),
        ("ENTREPOT__REGISTRY__EXTERNAL_URL", ""),
        ("ENTREPOT_CONFIG", "is no key"),
        ("PATH", "/bin"),
    ];
    let mut reader = reader(file, &environment).unwrap();
    let mut section = reader.section("registry");
    assert_eq!(section.get::<SocketAddr>("listen", "127.0.0.1:3").unwrap().port(), 2);
    assert_eq!(section.get::<Vec<String>>("trusted_proxies", "").unwrap(), ["10.0.0.0/8", "fd00::/8"]);
    assert_eq!(section.get::<Vec<String>>("names", "").unwrap(), ["a", "b"]);
    assert!(section.get::<bool>("open", "false").unwrap());
    assert!((section.get::<f64>("share", "1.0").unwrap() - 0.5).abs() < f64::EPSILON);
    assert_eq!(section.get::<u16>("workers", "16").unwrap(), 16);
    assert_eq!(section.get::<Duration>("patience", "10s").unwrap(), Duration::from_secs(10));
    assert_eq!(section.get::<LogFormat>("log_format", "json").unwrap(), LogFormat::Json);
    assert_eq!(section.optional::<Url>("external_url").unwrap(), None);
    assert!(section.is_set("names") && section.is_set("open") && !section.is_set("external_url"));
    reader.finish(&[]).unwrap();
}

#[test]
fn all_mistakes_are_told_together_each_with_its_key_and_its_remedy() {
    let file = "
        stray = 1
        [registry]
        listen = '0.0.0.0'
        listn = 'x'
        trusted_proxies = ['10.0.0.0/8', 7]
        [registri]
        [postgres]
        anything = 'goes'
        [node]
        cache_size = 10
        data_dir = ''";
    let environment = [
        ("ENTREPOT__NODE__MEMORY_SIZE", "64"),
        ("ENTREPOT__NODE__MEMORY_SISE", "64MiB"),
        ("ENTREPOT__API__LISTEN", "of the other program"),
        ("ENTREPOT__LISTEN", "1"),
    ];
    let mut reader = reader(file, &environment).unwrap();
    let mut section = reader.section("registry");
    let _ = section.get::<SocketAddr>("listen", "0.0.0.0:5000");
    let _ = section.get::<Vec<String>>("trusted_proxies", "");
    let _ = section.required::<Url>("url");
    let mut section = reader.section("node");
    let _ = section.get::<ByteSize>("cache_size", "10GiB");
    let _ = section.get::<ByteSize>("memory_size", "64MiB");
    let _ = section.optional::<PathBuf>("data_dir");
    assert_eq!(
        mistakes(reader, &["postgres", "api"]),
        [
            "stray: stands above all sections; put it below a line such as `[registry]`",
            "ENTREPOT__LISTEN: names no key; write ENTREPOT__SECTION__KEY, or unset it",
            "registry.listen: must be an IP address with a port, such as `0.0.0.0:5000` or `[::]:5000`, not `0.0.0.0`",
            "registry.trusted_proxies: item 2 of the list must be text in quotes, and is a number",
            "registry.url: must be set, here or as ENTREPOT__REGISTRY__URL",
            "node.cache_size: must be a size with its unit (B, KiB, MiB, GiB, TiB), such as `8MiB`, or `0`, not `10`",
            "node.memory_size (from ENTREPOT__NODE__MEMORY_SIZE): must be a size with its unit (B, KiB, MiB, GiB, TiB), \
             such as `8MiB`, or `0`, not `64`",
            "node.data_dir: must be a path, not ``",
            "[registri]: unknown section; did you mean `[registry]`?",
            "registry.listn: unknown key; did you mean `listen`?",
            "ENTREPOT__NODE__MEMORY_SISE: unknown key; did you mean `ENTREPOT__NODE__MEMORY_SIZE`?",
        ]
    );
}

#[test]
fn what_is_like_nothing_known_is_refused_too() {
    let reader = reader("[registry]\nbucket = 1\n[zzz]", &[("ENTREPOT__FOO__BAR", "1")]).unwrap();
    let mut reader = reader;
    let _ = reader.section("registry").optional::<String>("url");
    let mistakes = mistakes(reader, &[]);
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    for (mistake, begin) in mistakes.iter().zip(["registry.bucket: unknown key", "[zzz]: ", "ENTREPOT__FOO__BAR: "]) {
        assert!(mistake.starts_with(begin) && mistake.contains("config.example.toml"), "{mistake}");
    }
}

#[test]
fn a_reported_value_leads_to_its_mistake() {
    let mut reader = reader("[a]\nb = 1", &[]).unwrap();
    let reported = reader.section("a").required::<bool>("b").unwrap_err();
    assert_eq!(Problems::from(reported), reader.finish(&[]).unwrap_err());
}

#[test]
fn no_mistake_shows_a_secret() {
    const SECRET: &str = "hunter22-hunter22";
    let file =
        format!("[redis]\nport = '{SECRET}'\nurls = ['redis://:{SECRET}@redis:x']\nurl = 'redis://:{SECRET}@redis:x'");
    let environment = [("ENTREPOT__REDIS__DATABASE", SECRET)];
    let mut reader = reader(&file, &environment).unwrap();
    let mut section = reader.section("redis");
    let _ = section.optional_secret::<u16>("port").unwrap_err();
    let _ = section.optional_secret::<u16>("database").unwrap_err();
    // They are not read as secrets, although they contain one.
    let _ = section.optional::<Url>("url").unwrap_err();
    let _ = section.optional::<Vec<Url>>("urls").unwrap_err();
    let mistakes = mistakes(reader, &[]);
    assert_eq!(mistakes.len(), 4);
    assert!(!mistakes.concat().contains("hunter22"), "{mistakes:#?}");

    for broken in ["password = 'SECRET", "password = SECRET", "SECRET", "a = 1\na = 'SECRET'", "'SECRET' 'SECRET'"] {
        let problems = self::reader(&broken.replace("SECRET", SECRET), &[]).unwrap_err().to_string();
        assert!(problems.contains("not TOML at line "), "{problems}");
        assert!(!problems.contains("hunter22"), "{problems}");
    }
}

#[test]
fn a_broken_file_is_told_by_line_and_a_missing_one_by_name() {
    let problems = reader("[registry]\nlisten = \n", &[]).unwrap_err().to_string();
    assert!(problems.contains("entrepot.toml: not TOML at line 2, column "), "{problems}");
    let problems = Reader::load(Some(Path::new("/nowhere/entrepot.toml")), []).unwrap_err().to_string();
    assert!(problems.starts_with("/nowhere/entrepot.toml: ") && problems.contains("--config"), "{problems}");
    assert_eq!(problems.lines().count(), 1);
}

#[test]
fn every_key_that_was_asked_for_is_described_once() {
    let mut reader = Reader::load(None, []).unwrap();
    for _ in 0..2 {
        let mut section = reader.section("node");
        let _ = section.get::<ByteSize>("cache_size", "10GiB");
        let _ = section.optional_secret::<String>("password");
    }
    reader.section("keys").pass_over("snapshot_seed_file");
    let described = reader.described().iter().map(|of| (&*of.section, &*of.key, of.default.as_deref()));
    assert_eq!(described.collect::<Vec<_>>(), [("node", "cache_size", Some("10GiB")), ("node", "password", None)]);
}

#[test]
fn a_key_of_the_other_program_in_a_shared_section_is_let_be() {
    let mut reader = reader("[keys]\nsnapshot_seed_file = 1", &[("ENTREPOT__KEYS__SNAPSHOT_SEED_FILE", "x")]).unwrap();
    reader.section("keys").pass_over("snapshot_seed_file");
    let _ = reader.section("keys").optional::<String>("cluster_key_file");
    reader.finish(&[]).unwrap();
}

#[test]
fn times_and_sizes_have_units() {
    let time = |text: &str| Duration::from_text(text).ok().map(|time| time.as_millis());
    let times = [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("1 d", 86_400_000)];
    for (text, milliseconds) in times {
        assert_eq!(time(text), Some(milliseconds), "{text}");
    }
    let size = |text: &str| ByteSize::from_text(text).ok().map(|size| size.0);
    for (text, bytes) in [("0", 0), ("512B", 512), ("8MiB", 8 << 20), ("10 GiB", 10 << 30), ("1GB", 1_000_000_000)] {
        assert_eq!(size(text), Some(bytes), "{text}");
    }
    for text in
        ["", "30", "s", "-1s", "1.5s", "1 y", "99999999999999999999s", "99999999999999999d", "8mib", "16777216TiB"]
    {
        assert_eq!((time(text), size(text)), (None, None), "{text}");
    }
}

proptest! {
    #[test]
    fn reading_anything_never_panics(file in ".{0,80}", value in ".{0,20}") {
        if let Ok(mut reader) = reader(&file, &[("ENTREPOT__A__B", &value)]) {
            let mut section = reader.section("a");
            let _ = (section.optional::<Duration>("b"), section.optional::<ByteSize>("b"), section.optional::<Vec<Url>>("b"));
            let _ = reader.finish(&[]);
        }
    }
}
