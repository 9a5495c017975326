//! Waits for many answers of the store, a few at a time.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

/// How many calls are open at once.
const AT_ONCE: usize = 16;

/// All results in order, or the first failure.
///
/// Takes futures rather than a closure that makes them: such a closure over borrowed values is not `Send` enough.
pub(crate) async fn all<T, E, F: Future<Output = Result<T, E>>>(
    calls: impl IntoIterator<Item = F>,
) -> Result<Vec<T>, E> {
    let calls: Vec<F> = calls.into_iter().collect();
    stream::iter(calls).buffered(AT_ONCE).try_collect().await
}
