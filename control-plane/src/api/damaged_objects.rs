//! What nodes have found damaged in the store, as they have written it down there.

use entrepot_proto::convert::{names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::damaged_objects_server::DamagedObjects;
use entrepot_records::layout::{self, Parsed};
use entrepot_records::{self as records, DamageRecord};
use entrepot_runtime::chain;
use entrepot_store::Error;
use tonic::{Request, Response, Status};
use tracing::error;
use uuid::Uuid;

use super::Api;
use super::caller::Permission;
use super::page::Page;
use crate::at_once;
use crate::error::ApiError;
use crate::plane::Plane;

#[tonic::async_trait]
impl DamagedObjects for Api {
    async fn list_damaged_objects(
        &self,
        request: Request<pb::ListDamagedObjectsRequest>,
    ) -> Result<Response<pb::ListDamagedObjectsResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(list(&self.0, request.get_ref()).await?))
    }
}

async fn list(
    plane: &Plane,
    request: &pb::ListDamagedObjectsRequest,
) -> Result<pb::ListDamagedObjectsResponse, ApiError> {
    let (page_size, page_token) = (request.page_size, &request.page_token);
    let page: Page<Uuid> = Page::read(&plane.cluster_key, "ListDamagedObjects", &[], page_size, page_token)?;
    let limit = usize::try_from(page.fetch()).unwrap_or(usize::MAX);
    let after = page.after.map(layout::damage);
    let entries = plane.store.list(&layout::damages_prefix(), after.as_ref(), limit).await?;
    let mut objects: Vec<Uuid> = entries.iter().filter_map(|entry| object(&layout::parse(&entry.key)?)).collect();
    let next_page_token = page.cut(&plane.cluster_key, &mut objects, |last| *last);
    let read: Vec<_> = at_once::all(objects.into_iter().map(|object| read(plane, object))).await?;
    Ok(pb::ListDamagedObjectsResponse { damaged_objects: read.into_iter().flatten().collect(), next_page_token })
}

fn object(parsed: &Parsed) -> Option<Uuid> {
    if let Parsed::Damage { object } = parsed { Some(*object) } else { None }
}

/// What is written of an object; `None` if that was removed meanwhile, or cannot be read.
async fn read(plane: &Plane, object: Uuid) -> Result<Option<pb::DamagedObject>, Error> {
    match records::read::<DamageRecord>(&*plane.store, &layout::damage(object)).await {
        Ok(found) => Ok(found.map(|(record, _)| to_wire(object, &record))),
        Err(bad @ Error::BadRecord { .. }) => {
            error!(error = %chain(&bad), "a damaged object is not listed");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn to_wire(object: Uuid, record: &DamageRecord) -> pb::DamagedObject {
    let nodes = |ids: &std::collections::BTreeSet<String>| ids.iter().map(|id| format!("nodes/{id}")).collect();
    pb::DamagedObject {
        name: names::damaged_object(object),
        key: layout::content(object).to_string(),
        digest: record.digest.to_string(),
        find_time: Some(timestamp(record.find_time)),
        set_aside_time: record.set_aside_time.map(timestamp),
        damaged_for_nodes: nodes(&record.wrong_for),
        right_for_nodes: nodes(&record.right_for),
    }
}
