//! Makes many calls to the store, a few at a time.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

/// How many calls run at once.
const AT_ONCE: usize = 16;

/// All results in order, or the first failure.
///
/// It takes futures rather than a closure that makes them, because such a closure over borrowed values is not `Send`.
pub(crate) async fn all<T, E, F: Future<Output = Result<T, E>>>(
    calls: impl IntoIterator<Item = F>,
) -> Result<Vec<T>, E> {
    let calls: Vec<F> = calls.into_iter().collect();
    stream::iter(calls).buffered(AT_ONCE).try_collect().await
}
