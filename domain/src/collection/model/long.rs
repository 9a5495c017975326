//! The explorations that take minutes; `scripts/suite model` runs them.

use super::*;

const COMMIT: Setup = Setup { commits: 1, collectors: 1, ..Setup::NOBODY };

#[test]
#[ignore = "millions of states: `scripts/suite model` runs it"]
fn two_writers_and_a_collector() {
    holds("2 writers, 1 collector", Setup { writers: 2, collectors: 1, ..Setup::NOBODY });
}

#[test]
#[ignore = "millions of states: `scripts/suite model` runs it"]
fn a_commit_and_two_collectors() {
    holds("1 commit, 2 collectors", Setup { collectors: 2, ..COMMIT });
}

#[test]
#[ignore = "millions of states: `scripts/suite model` runs it"]
fn a_writer_a_commit_and_a_collector() {
    holds("1 writer, 1 commit, 1 collector, no faults", Setup { writers: 1, objects: 2, faults: false, ..COMMIT });
}

#[test]
#[ignore = "millions of states: `scripts/suite model` runs it"]
fn a_commit_and_a_collector_whose_index_is_set_back() {
    holds("1 commit, 1 collector, index set back", Setup { restore: true, ..COMMIT });
}

#[test]
#[ignore = "millions of states: `scripts/suite model` runs it"]
fn a_commit_a_deletion_and_a_collector() {
    holds("1 commit, deletions, 1 collector", Setup { deletes: true, ..COMMIT });
}

#[test]
#[ignore = "millions of states: `scripts/suite model` runs it"]
fn a_commit_a_collector_and_the_sweep() {
    holds("1 commit, 1 collector, sweep", Setup { sweep: true, ..COMMIT });
}

#[test]
#[ignore = "millions of states: `scripts/suite model` runs it"]
fn two_commits_of_one_manifest_and_a_collector() {
    holds("2 commits, 1 collector, no faults", Setup { commits: 2, faults: false, ..COMMIT });
}
