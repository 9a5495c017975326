//! Request ids: a retry of a call that creates something returns the first answer.

use entrepot_proto::convert::Violations;
use prost::Message;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::caller::Caller;
use crate::db::requests::{self, Claim};
use crate::db::{self, Tx};
use crate::error::ApiError;
use crate::plane::Plane;

/// The id of a request, if it has one, and a hash that distinguishes its content from others.
pub(super) struct RequestId {
    id: Option<Uuid>,
    hash: [u8; 32],
}

/// What is known about a repeated request.
pub(super) enum Earlier<T> {
    /// It is not a repetition.
    None,
    /// It got this answer.
    Answered(T),
    /// Its answer contained a secret, which is not kept.
    NotKept,
}

impl RequestId {
    /// Reads the field `request_id` of `request`, which was sent to `method`.
    pub(super) fn read(method: &str, request_id: &str, request: &impl Message) -> Result<Self, Violations> {
        let mut hasher = Sha256::new();
        hasher.update(method);
        hasher.update([0]);
        hasher.update(request.encode_to_vec());
        let hash = hasher.finalize().into();
        if request_id.is_empty() {
            return Ok(Self { id: None, hash });
        }
        match request_id.parse() {
            Ok(id) => Ok(Self { id: Some(id), hash }),
            Err(_) => Err(Violations::one("request_id", "must be a UUID such as those of `uuidgen`, or empty")),
        }
    }

    /// Claims the id for this transaction, or finds the earlier answer.
    pub(super) async fn claim<T: Message + Default>(
        &self,
        plane: &Plane,
        tx: &Tx<'_>,
        caller: &Caller,
    ) -> Result<Earlier<T>, ApiError> {
        let Some(id) = self.id else { return Ok(Earlier::None) };
        let purpose = format!("request/{id}");
        let sealed = plane.cluster_key.seal(&purpose, &self.hash);
        let claim = requests::claim(tx, caller.principal_uid, id, &sealed, plane.clock.now()).await?;
        let Claim::Answered { sealed_hash, response } = claim else { return Ok(Earlier::None) };
        let hash = plane.cluster_key.unseal(&purpose, &sealed_hash);
        if hash.map_err(|error| ApiError::Internal(error.into()))?.expose() != &self.hash {
            let why = "was used for a different request within the last 24 h: choose a new one for each request";
            return Err(ApiError::field("request_id", why));
        }
        let Some(response) = response else { return Ok(Earlier::NotKept) };
        T::decode(response.as_slice()).map(Earlier::Answered).map_err(|error| ApiError::Internal(error.into()))
    }

    /// Keeps the answer for a retry.
    pub(super) async fn answer(&self, tx: &Tx<'_>, caller: &Caller, response: &impl Message) -> Result<(), db::Error> {
        match self.id {
            Some(id) => requests::answer(tx, caller.principal_uid, id, &response.encode_to_vec()).await,
            None => Ok(()),
        }
    }
}
