//! The service that lists live nodes for operators, whichever control plane they are connected to.

use std::collections::HashSet;

use entrepot_domain::ResourceId;
use entrepot_proto::convert::{names, timestamp};
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::nodes_server::Nodes;
use tonic::{Request, Response, Status};

use super::Api;
use super::caller::Permission;
use super::page::Page;
use crate::error::ApiError;
use crate::live_nodes::{self, Listed};
use crate::plane::Plane;
use crate::snapshot::{Version, runs};

#[tonic::async_trait]
impl Nodes for Api {
    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(list(&self.0, request.get_ref()).await?))
    }
}

async fn list(plane: &Plane, request: &pb::ListNodesRequest) -> Result<pb::ListNodesResponse, ApiError> {
    let page: Page<String> = Page::read(&plane.cluster_key, "ListNodes", &[], request.page_size, &request.page_token)?;
    let after: Option<ResourceId> = page.after.as_deref().and_then(|id| id.parse().ok());
    let limit = usize::try_from(page.fetch()).unwrap_or(usize::MAX);
    let (store, key, now) = (&*plane.store, &plane.cluster_key, plane.clock.now());
    let mut live = live_nodes::list(store, key, now, after.as_ref(), limit, &HashSet::new()).await?;
    let next_page_token = page.cut(&plane.cluster_key, &mut live, |last| last.record.node_id.to_string());
    let published = plane.snapshots.published_version();
    Ok(pb::ListNodesResponse { nodes: live.iter().map(|node| to_wire(node, published)).collect(), next_page_token })
}

fn to_wire(listed: &Listed, published: Option<Version>) -> pb::Node {
    let node = &listed.record;
    pb::Node {
        name: names::node(&node.node_id),
        release: node.release.clone(),
        running: node.running.map(|(epoch, revision)| pb::ConfigurationVersion { epoch, revision }),
        peer_address: node.peer_address.clone().unwrap_or_default(),
        start_time: Some(timestamp(node.start_time)),
        report_time: Some(timestamp(listed.write_time)),
        current: published.is_some_and(|published| runs(node, published)),
    }
}
