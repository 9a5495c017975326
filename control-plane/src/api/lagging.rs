//! Says with an answer how many nodes did not say that they know of a change.

use tonic::Response;

/// The name in the answer's metadata. It is there if there are any.
const LAGGING_NODES: &str = "entrepot-lagging-nodes";

/// An answer to a call that has changed records.
pub(super) fn with_lagging<T>(message: T, count: usize) -> Response<T> {
    let mut response = Response::new(message);
    if count > 0 {
        response.metadata_mut().insert(LAGGING_NODES, count.into());
    }
    response
}
