//! What every store must do. The tests of each implementation call [`run`]; a failed check panics.

mod lists;
mod reads;
mod uploads;
mod writes;

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use entrepot_domain::digest::{Algorithm, Digest};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::{BlobStore, Deleted, Error, GET_LIMIT_BYTES, Key, Prefix, Store};

/// How many writers race.
const RACERS: usize = 16;
/// How many races there are. Some services let losers wait for seconds.
const RACES: usize = 3;

/// Runs every check against a new store from `make`.
///
/// # Panics
/// If a check fails.
pub async fn run(make: impl AsyncFn() -> Store) {
    writes::what_is_absent_is_none_and_may_be_deleted(&*make().await).await;
    writes::what_is_written_is_read_back(&*make().await).await;
    writes::put_once_never_overwrites(&*make().await).await;
    writes::a_race_of_put_once_has_one_winner(&*make().await).await;
    writes::replace_if_wants_the_version_that_is_there(&*make().await).await;
    writes::a_race_of_replace_if_has_one_winner_per_version(&*make().await).await;
    writes::no_increment_is_lost(&*make().await).await;
    writes::versions_tell_values_apart(&*make().await).await;
    reads::ranges_are_exact_and_end_with_the_object(&*make().await).await;
    reads::large_objects_come_in_bounded_chunks_and_not_by_get(&*make().await).await;
    reads::a_read_goes_on_or_fails_when_the_object_is_replaced(&*make().await).await;
    lists::lists_are_sorted_deep_and_resumable(&*make().await).await;
    lists::lists_keep_to_their_folder(&*make().await).await;
    lists::lists_of_many_keys_are_whole(&*make().await).await;
    lists::lists_say_what_reads_say(&*make().await).await;
    writes::delete_if_wants_the_version_that_is_there(&*make().await).await;
    writes::a_race_of_delete_if_and_replace_if_has_one_winner(&*make().await).await;
    uploads::uploads_are_invisible_until_complete(&*make().await).await;
    uploads::uploads_in_odd_parts_come_out_whole(&*make().await).await;
    uploads::uploads_that_are_given_up_leave_nothing(&*make().await).await;
    writes::content_is_read_back_by_its_digest(&*make().await).await;
    writes::deleted_keys_can_be_written_again(&*make().await).await;
    writes::writers_and_deleters_in_one_folder_do_not_hurt_each_other(&*make().await).await;
    writes::keys_that_others_begin_with_are_not_those(&*make().await).await;
    writes::the_longest_keys_work(&*make().await).await;
}

/// The one success. All other results must be refusals for which `refused` is true.
fn one_winner<T>(results: &[Result<T, Error>], refused: impl Fn(&Error) -> bool) -> usize {
    let winners: Vec<usize> = (0..results.len()).filter(|index| results[*index].is_ok()).collect();
    assert_eq!(winners.len(), 1, "winners: {winners:?}");
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(refused(error), "{error:?}");
    }
    winners[0]
}

/// The keys that are listed.
async fn keys(store: &dyn BlobStore, prefix: &Prefix, start_after: Option<&Key>, limit: usize) -> Vec<Key> {
    let entries = store.list(prefix, start_after, limit).await.expect("list");
    entries.into_iter().map(|entry| entry.key).collect()
}

async fn write(store: &dyn BlobStore, at: &str, content: &str) {
    store.put(&key(at), content.to_owned().into()).await.expect(at);
}

async fn read(store: &dyn BlobStore, at: &str) -> Option<String> {
    store.get(&key(at)).await.expect(at).map(|object| text(&object.bytes).to_owned())
}

fn key(text: &str) -> Key {
    Key::parse(text).expect(text)
}

fn folder(text: &str) -> Prefix {
    Prefix::below(text).expect(text)
}

fn number(number: usize) -> Bytes {
    number.to_string().into()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}
