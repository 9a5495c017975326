//! `entrepot sync`, `warm` and `operation` with a real registry in a process of its own, and a simulated upstream.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Output, Stdio};

use entrepot_test_support::{FakeUpstream, Fault, images, wait_until};
use rustix::process::{Pid, Signal, kill_process};

#[allow(dead_code, reason = "each of the test programs uses a part of it")]
#[path = "shared/registry.rs"]
mod registry;

use registry::{KEY, LIMIT, Registry, entrepot, passable};

/// A registry with a rule `demo` to `upstream`.
fn start(folder: &tempfile::TempDir, upstream: &FakeUpstream) -> Registry {
    let registry = Registry::start(&folder.path().join("data"), Some(KEY));
    registry.text(&format!(
        "entrepot upstream create local --kind oci --endpoint {} --allow-plain-http --allow-private-addresses",
        upstream.url()
    ));
    registry.text("entrepot rule create demo --upstream local");
    registry
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command prints in addition to its answer.
fn notes(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts the command.
fn spawn(registry: &Registry, args: &[&str]) -> Child {
    let mut command = entrepot();
    command.args(args).env("ENTREPOT_API", registry.told("API")).env("ENTREPOT_KEY", KEY);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_fetched_ahead_and_synced_and_the_exit_code_says_whether_that_went_well() {
    let upstream = FakeUpstream::start().await;
    let old = upstream.publish_image("team/app", "v1", &[images::random_bytes(1, 1 << 20)]);
    upstream.publish_image("team/app", "v2", &[images::random_bytes(2, 1000)]);
    let folder = passable();
    let registry = start(&folder, &upstream);
    let list = folder.path().join("list.txt");
    std::fs::write(&list, "# what we run\ndemo/team/app:v2\n\n").unwrap();

    let warm = format!("entrepot warm demo/team/app:v1 --platform linux/amd64 --file {}", list.display());
    let warmed = registry.run(&warm);
    assert!(warmed.status.success(), "{}", notes(&warmed));
    // Without a terminal, there is a line for each ended item, and a table at the end.
    assert!(notes(&warmed).contains("demo/team/app:v1: created sha256:"), "{}", notes(&warmed));
    let rows: Vec<String> = out(&warmed).lines().map(str::to_owned).collect();
    assert!(rows[0].starts_with("IMAGE") && rows.len() == 3, "{rows:?}");
    assert!(rows[1].contains("demo/team/app:v1") && rows[1].contains("created"), "{rows:?}");
    assert_eq!(upstream.fetches_of(&old.layers[0]), 1);

    let new = upstream.publish_image("team/app", "v1", &[images::random_bytes(3, 1000)]);
    // The index learns of the tags a moment later.
    for tag in ["v1", "v2"] {
        let get = format!("entrepot image get demo/team/app:{tag}");
        wait_until(LIMIT, &format!("`{tag}` is listed"), async || registry.run(&get).status.success()).await;
    }
    let synced = registry.run("entrepot sync demo/team/app");
    assert!(synced.status.success(), "{}", notes(&synced));
    let text = out(&synced);
    let row = |tag: &str| text.lines().find(|line| line.contains(tag)).unwrap().to_owned();
    assert!(row(":v1").contains("moved") && row(":v1").contains(&new.manifest[..19]), "{text}");
    assert!(row(":v2").contains("unchanged"), "{text}");

    let broken = upstream.publish_image("team/app", "v2", &[images::random_bytes(4, 1000)]);
    upstream.script(&broken.layers[0], Fault::Status(404, None));
    let failed = registry.run("entrepot sync demo/team/app --tag v2 --output json");
    assert_eq!(failed.status.code(), Some(1));
    assert!(notes(&failed).contains("1 of 1 failed"), "{}", notes(&failed));
    let items: serde_json::Value = serde_json::from_str(&out(&failed)).unwrap();
    assert_eq!(items["items"][0]["outcome"], "FAILED");

    let listed = registry.json("entrepot operation list --output json");
    let states: Vec<&str> =
        listed["operations"].as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["FAILED", "SUCCEEDED", "SUCCEEDED"], "the youngest first");
    let name = listed["operations"][0]["name"].as_str().unwrap();
    assert!(registry.text(&format!("entrepot operation get {name}")).contains("sync repository"));
    assert_eq!(registry.text(&format!("entrepot operation delete {name}")), format!("deleted {name}\n"));

    let none = registry.run("entrepot sync demo/team/none");
    assert_eq!(none.status.code(), Some(1));
    assert!(notes(&none).contains("repositories/demo/team/none"), "{}", notes(&none));
    let switched = registry.text("entrepot repository update demo/team/app --automatic-sync off");
    assert!(switched.contains("off"), "{switched}");
    registry.text("entrepot rule update demo --automatic-sync off");
    assert_eq!(registry.json("entrepot rule get demo -o json")["automatic_sync"], "OFF");
    registry.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_cancels_what_the_command_has_begun_unless_it_was_detached() {
    let upstream = FakeUpstream::start().await;
    let image = upstream.publish_image("app", "v1", &[images::random_bytes(1, 1 << 20)]);
    let folder = passable();
    let registry = start(&folder, &upstream);
    let gate = upstream.hold(&image.layers[0]);

    let begun = registry.json("entrepot warm demo/app:v1 --detach --output json");
    let detached = begun["name"].as_str().unwrap().to_owned();
    assert_eq!(begun["state"], "RUNNING");
    let mut child = spawn(&registry, &["warm", "demo/app:v1"]);
    wait_until(LIMIT, "the layer is asked for", async || upstream.fetches_of(&image.layers[0]) == 1).await;
    let (ended, told) = tokio::task::spawn_blocking(move || {
        let mut told = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        assert!(line.contains("ctrl-c cancels it"), "{line}");
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let mut rest = String::new();
        told.read_to_string(&mut rest).unwrap();
        (child.wait_with_output().unwrap(), rest)
    })
    .await
    .unwrap();
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("was cancelled"), "{told}");
    assert!(out(&ended).contains("cancelled"), "{}", out(&ended));

    gate.release();
    let watched = registry.run(&format!("entrepot operation watch {detached}"));
    assert!(watched.status.success(), "the other one was left alone: {}", notes(&watched));
    registry.stop();
}
