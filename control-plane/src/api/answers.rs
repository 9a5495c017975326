//! Answers of nodes to registry clients. They are not stored here: the nodes are asked for them.

use entrepot_proto::convert::names;
use entrepot_proto::node::v1::QuestionFailure;
use entrepot_proto::node::v1::take_questions_request::Reply;
use entrepot_proto::node::v1::take_questions_response::Kind;
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::answers_server::Answers;
use tonic::{Request, Response, Status};

use super::Api;
use super::caller::Permission;
use crate::error::ApiError;
use crate::live_nodes;
use crate::plane::Plane;

#[tonic::async_trait]
impl Answers for Api {
    async fn get_answer(&self, request: Request<pb::GetAnswerRequest>) -> Result<Response<pb::Answer>, Status> {
        self.caller(&request, Permission::Administer).await?;
        Ok(Response::new(answer(&self.0, &request.get_ref().name).await?))
    }
}

async fn answer(plane: &Plane, name: &str) -> Result<pb::Answer, ApiError> {
    let (node, request_id) = names::parse_answer(name).map_err(|error| ApiError::field("name", error))?;
    if !plane.inquiries.reaches(&node) {
        let lives = live_nodes::lives(&*plane.store, &node, plane.clock.now()).await?;
        lives.then_some(()).ok_or_else(|| ApiError::NotFound {
            kind: "entrepot.v1.Node",
            name: names::node(&node),
            field: Some("name"),
            remedy: " or is not alive: what a node remembers of its answers ends with it",
        })?;
    }
    match plane.inquiries.ask(&node, Kind::Answer(request_id)).await {
        Ok(Reply::Answer(answer)) => Ok(answer),
        Ok(Reply::Failed(failed)) if failed.failure() == QuestionFailure::Forgotten => Err(ApiError::NotFound {
            kind: "entrepot.v1.Answer",
            name: name.to_owned(),
            field: Some("name"),
            remedy: " any more: a node remembers its last 10,000 answers, for as long as it runs",
        }),
        Ok(Reply::Failed(failed)) => Err(ApiError::NodeSilent { node: names::node(&node), why: failed.reason }),
        Ok(Reply::Fills(_) | Reply::Upstreams(_) | Reply::Told(_)) => {
            Err(ApiError::NodeSilent { node: names::node(&node), why: "its reply is none".to_owned() })
        }
        Err(silence) => Err(ApiError::NodeSilent { node: names::node(&node), why: silence.to_string() }),
    }
}
