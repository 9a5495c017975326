//! Which crate may use which, and where a library may be used at all. The arrows are drawn in ARCHITECTURE.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// For each crate, those of our crates that it may depend on.
const ARROWS: [(&str, &[&str]); 11] = [
    ("domain", &[]),
    ("runtime", &[]),
    ("proto", &["domain"]),
    ("store", &["domain"]),
    ("records", &["domain", "store"]),
    ("trust", &["domain"]),
    ("upstream", &["domain"]),
    ("settings", &["domain", "records", "runtime", "store", "trust"]),
    ("control-plane", &["domain", "proto", "records", "runtime", "settings", "store", "trust", "upstream"]),
    ("data-plane", &["domain", "proto", "records", "runtime", "settings", "store", "trust", "upstream"]),
    (
        "cli",
        &[
            "domain",
            "proto",
            "records",
            "runtime",
            "settings",
            "store",
            "trust",
            "upstream",
            "control-plane",
            "data-plane",
        ],
    ),
];

/// The only places where something may be used, as beginnings of paths.
const HOMES: [(&str, &[&str]); 9] = [
    ("tokio_postgres::", &["control-plane/src/db"]),
    ("use tokio_postgres", &["control-plane/src/db"]),
    ("reqwest::", &["upstream/"]),
    ("use reqwest", &["upstream/"]),
    ("redis::", &["data-plane/src/lease", "data-plane/src/budget"]),
    ("use redis", &["data-plane/src/lease", "data-plane/src/budget"]),
    // Generated types. `entrepot_proto::convert`, which leads from them to the domain, may be used everywhere.
    ("entrepot_proto::v1", API_EDGES),
    ("entrepot_proto::node", API_EDGES),
    ("entrepot_proto::{", API_EDGES),
];

const API_EDGES: &[&str] = &[
    "proto/",
    "control-plane/src/api",
    "control-plane/src/snapshot",
    "data-plane/src/control",
    "data-plane/src/jobs",
    "data-plane/src/questions",
    "cli/",
    // Snapshots and events are stored in the form of their messages, so code that reads or writes them is here.
    "control-plane/src/restore.rs",
    "control-plane/src/index.rs",
    "control-plane/src/inquiries.rs",
    "control-plane/src/recurring/leftovers.rs",
    "control-plane/src/words.rs",
];

/// The layers inside the big crates, the lowest first. A module uses only modules in lower layers, so only the
/// program's start uses the edges at the top (`http`, `peer_api`). Each module of the crate is listed here; `lib.rs`
/// and `main.rs` may use all.
const FLOORS: [(&str, &[&[&str]]); 2] = [("control-plane", CONTROL_PLANE_FLOORS), ("data-plane", DATA_PLANE_FLOORS)];

const CONTROL_PLANE_FLOORS: &[&[&str]] = &[
    &["at_once", "inquiries", "version"],
    &["db", "live_nodes"],
    &["config", "metrics", "snapshot"],
    &["error"],
    &["session"],
    &["plane"],
    &["bootstrap", "index", "settings", "words"],
    &["reconcile"],
    &["recurring", "restore"],
    &["api"],
    &["app"],
    &["program"],
];

const DATA_PLANE_FLOORS: &[&[&str]] = &[
    &["body", "capacity", "error", "failpoint", "flight", "lease", "measured", "moment", "outcome", "turns"],
    &["budget", "config", "metrics", "target", "trail"],
    &["connection", "control", "readers"],
    &["memory"],
    &["peers", "upstream"],
    &["repository"],
    &["place"],
    &["auth", "fill"],
    &["inspect", "resolve"],
    &["jobs", "peer_api", "questions", "respond"],
    &["pull"],
    &["http"],
    &["app", "settings"],
    &["program"],
];

#[test]
fn crates_depend_only_along_the_arrows() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into();
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("cargo lists packages");
    for package in packages {
        let name = ours(package).expect("the workspace holds nothing but our crates");
        let (normal, dev) = dependencies(package);
        match name {
            // The tests may use everything; the crate that supports them uses none of the crates that it helps to test.
            "tests" => continue,
            "hostile-upstream" => {
                assert_eq!(normal, BTreeSet::from(["test-support".to_owned()]), "it is the scripted one")
            }
            "test-support" => {
                assert!(normal.is_empty() && dev.is_empty(), "test-support depends on {normal:?} {dev:?}")
            }
            _ => {
                let allowed = arrows.get(name).unwrap_or_else(|| panic!("{name} has no place among the arrows"));
                let wrong: Vec<_> = normal.iter().filter(|on| !allowed.contains(&on.as_str())).collect();
                assert!(wrong.is_empty(), "{name} may not depend on {wrong:?}");
                let wrong: Vec<_> =
                    dev.iter().filter(|on| *on != "test-support" && !allowed.contains(&on.as_str())).collect();
                assert!(wrong.is_empty(), "the tests of {name} may not depend on {wrong:?}");
            }
        }
    }
}

#[test]
fn every_crate_has_its_place() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("cargo lists packages");
    let found: BTreeSet<&str> = packages.iter().filter_map(ours).collect();
    let known: BTreeSet<&str> =
        ARROWS.iter().map(|(name, _)| *name).chain(["tests", "test-support", "hostile-upstream"]).collect();
    assert_eq!(found, known);
}

#[test]
fn libraries_are_named_only_in_their_homes() {
    let root = root();
    for (name, homes) in HOMES {
        let mut strangers = Vec::new();
        for (krate, _) in ARROWS {
            for file in sources(&root.join(krate)) {
                let path =
                    file.strip_prefix(&root).expect("it was found below the root").to_string_lossy().into_owned();
                // Tests may use anything.
                let is_test = path.contains("/tests/") || path.ends_with("/tests.rs");
                if !is_test && !homes.iter().any(|home| path.starts_with(home)) && names(&file, name) {
                    strangers.push(path);
                }
            }
        }
        assert!(strangers.is_empty(), "`{name}` belongs in {homes:?} alone, and is named in {strangers:?}");
    }
}

#[test]
fn modules_name_only_what_is_on_a_lower_floor() {
    for (krate, floors) in FLOORS {
        let floor = |module: &str| floors.iter().position(|floor| floor.contains(&module));
        let mut wrong = Vec::new();
        for (module, named) in modules(&root().join(krate).join("src")) {
            let Some(own) = floor(&module) else {
                wrong.push(format!("`{module}` has no floor"));
                continue;
            };
            let up = named.iter().filter(|name| **name != module && floor(name).is_none_or(|floor| floor >= own));
            wrong.extend(up.map(|name| format!("`{module}` names `{name}`")));
        }
        assert!(wrong.is_empty(), "in {krate}: {}", wrong.join(", "));
    }
}

#[test]
fn modules_are_found_however_they_are_imported() {
    let code = "use crate::{a, b::{c, self}, d as e};\nuse crate::f::g;\nfn h() { crate::i::j(crate::Top) }";
    assert_eq!(modules_named(code), ["a", "b", "d", "f", "i"].map(str::to_owned).into());
}

/// The modules at the root of a crate, each with the modules that its code uses, except in tests.
fn modules(src: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut modules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources(src) {
        let path = file.strip_prefix(src).expect("it was found below the folder");
        let module = path.iter().next().expect("a path has a part").to_string_lossy();
        let module = module.trim_end_matches(".rs").to_owned();
        if ["lib", "main"].contains(&&*module) || path.ends_with("tests.rs") {
            continue;
        }
        let code = code(&file);
        let product = code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        modules.entry(module).or_default().extend(modules_named(product));
    }
    modules
}

/// The modules of its own crate that some code uses, by paths from the crate's root.
fn modules_named(code: &str) -> BTreeSet<String> {
    let word =
        |text: &str| text.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned);
    let mut found = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.extend(word(rest));
            continue;
        };
        let (mut depth, mut begin) = (0, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    found.extend(word(&group[begin..at]));
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.extend(word(&group[begin..at]));
                    begin = at + 1;
                }
                _ => {}
            }
        }
    }
    // Items that `lib.rs` re-exports, such as types, are not modules.
    found.retain(|name| name.starts_with(char::is_lowercase));
    found
}

/// The short name of one of our crates.
fn ours(package: &Value) -> Option<&str> {
    package["name"].as_str()?.strip_prefix("entrepot-")
}

/// Our crates that a package depends on, for building and for its tests.
fn dependencies(package: &Value) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut normal, mut dev) = (BTreeSet::new(), BTreeSet::new());
    for dependency in package["dependencies"].as_array().expect("cargo lists dependencies") {
        if let Some(on) = ours(dependency) {
            let kind = if dependency["kind"] == "dev" { &mut dev } else { &mut normal };
            kind.insert(on.to_owned());
        }
    }
    (normal, dev)
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are below the root").to_owned()
}

/// The Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The lines of a file without comments.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Whether the code of a file contains these words; comments do not count.
fn names(file: &Path, what: &str) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let ends_in_word = is_word(what.chars().next_back());
    code(file).lines().any(|code| {
        code.match_indices(what).any(|(at, _)| {
            let (before, after) = (code[..at].chars().next_back(), code[at + what.len()..].chars().next());
            !is_word(before) && (!ends_in_word || !is_word(after))
        })
    })
}
