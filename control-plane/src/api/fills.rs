//! Running fills. They are not stored here: the nodes are asked for them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use entrepot_domain::{RepositoryName, ResourceId};
use entrepot_proto::convert::{Violations, names};
use entrepot_proto::node::v1::ListRunningFills;
use entrepot_proto::node::v1::take_questions_request::Reply;
use entrepot_proto::node::v1::take_questions_response::Kind;
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::fills_server::Fills;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::Api;
use super::caller::{Permission, Session};
use super::filter::{self, Value};
use super::page::Page;
use crate::error::ApiError;
use crate::plane::Plane;
use crate::{at_once, live_nodes};

/// The header that names live nodes which could not be reached, separated by commas.
const SILENT: &str = "entrepot-silent-nodes";
/// How often watchers get an update.
const EVERY: Duration = Duration::from_secs(1);
/// How often the list of live nodes is read. Silent nodes are asked again at that time.
const LOOK: Duration = Duration::from_secs(5);
/// How long a watcher may fail to take a message.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many nodes are asked at most.
const NODES: usize = 1000;
/// How many fills a watcher gets at most.
const WATCHED: usize = 1000;

/// The fills that a caller wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Filter {
    rule: Option<ResourceId>,
    repository: Option<RepositoryName>,
    node: Option<ResourceId>,
}

/// The answers of the nodes.
#[derive(Default)]
struct Seen {
    fills: Vec<pb::Fill>,
    /// The nodes that could not be reached, and why.
    silent: BTreeMap<ResourceId, String>,
}

#[tonic::async_trait]
impl Fills for Api {
    type WatchFillsStream = Pin<Box<dyn Stream<Item = Result<pb::WatchFillsResponse, Status>> + Send>>;

    async fn list_fills(
        &self,
        request: Request<pb::ListFillsRequest>,
    ) -> Result<Response<pb::ListFillsResponse>, Status> {
        self.caller(&request, Permission::Administer).await?;
        let (answer, silent) = list(&self.0, request.get_ref()).await?;
        let mut response = Response::new(answer);
        if let Some(silent) = join_ids(&silent).and_then(|names| names.parse().ok()) {
            response.metadata_mut().insert(SILENT, silent);
        }
        Ok(response)
    }

    async fn watch_fills(
        &self,
        request: Request<pb::WatchFillsRequest>,
    ) -> Result<Response<Self::WatchFillsStream>, Status> {
        let mut session = self.session(&request, Permission::Administer).await?;
        let filter = read_filter(&request.get_ref().filter).map_err(ApiError::from)?;
        let place = Arc::clone(&self.0.inquiries.watchers).try_acquire_owned();
        let place = place.map_err(|_| ApiError::TooManyWatchers)?;
        let (outgoing, messages) = mpsc::channel(1);
        let api = self.clone();
        self.0.tasks.spawn("watch fills", async move {
            let stopping = api.0.tasks.stopping();
            stopping.run_until_cancelled(watch(&api, &mut session, &filter, &outgoing)).await;
            drop(place);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

async fn list(
    plane: &Plane,
    request: &pb::ListFillsRequest,
) -> Result<(pb::ListFillsResponse, BTreeSet<ResourceId>), ApiError> {
    let key = &plane.cluster_key;
    let page = Page::<String>::read(key, "ListFills", &[&request.filter], request.page_size, &request.page_token);
    let mut violations = Violations::default();
    let (page, filter) = (violations.merge(page), violations.merge(read_filter(&request.filter)));
    let (page, filter) = violations.finish(page.zip(filter))?;
    let nodes = nodes(plane, &filter).await?;
    let Seen { mut fills, silent } = ask_nodes(plane, &nodes, &filter).await?;
    if let (Some((id, why)), true) = (silent.first_key_value(), silent.len() == nodes.len()) {
        return Err(ApiError::NodeSilent { node: names::node(id), why: why.clone() });
    }
    fills.retain(|fill| page.after.as_ref().is_none_or(|after| fill.name > *after));
    let next_page_token = page.cut(key, &mut fills, |last| last.name.clone());
    Ok((pb::ListFillsResponse { fills, next_page_token }, silent.into_keys().collect()))
}

/// Sends a watcher the answers of the nodes again and again, until it leaves or loses its permission.
async fn watch(
    api: &Api,
    session: &mut Session,
    filter: &Filter,
    outgoing: &mpsc::Sender<Result<pb::WatchFillsResponse, Status>>,
) {
    let plane = &api.0;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut live, mut silent) = (Vec::new(), BTreeSet::new());
    let mut looked = None::<Instant>;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = outgoing.closed() => return,
        }
        if let Err(error) = api.confirm(session, Permission::Administer).await {
            drop(timeout(PATIENCE, outgoing.send(Err(error.into()))).await);
            return;
        }
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            looked = Some(Instant::now());
            match nodes(plane, filter).await {
                Ok(nodes) => live = nodes,
                Err(error) => {
                    warn!("it is not known which nodes are alive, so only nodes with an open stream are asked: {error}")
                }
            }
            silent.clear();
        }
        let asked: Vec<ResourceId> = live.iter().filter(|id| !silent.contains(*id)).cloned().collect();
        let Ok(Seen { mut fills, silent: more }) = ask_nodes(plane, &asked, filter).await else { return };
        silent.extend(more.into_keys());
        fills.truncate(WATCHED);
        let message = pb::WatchFillsResponse { fills, silent_nodes: silent.iter().map(names::node).collect() };
        if !matches!(timeout(PATIENCE, outgoing.send(Ok(message))).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// The nodes to ask: those that are alive, and those with an open stream here.
async fn nodes(plane: &Plane, filter: &Filter) -> Result<Vec<ResourceId>, ApiError> {
    let (store, now) = (&*plane.store, plane.clock.now());
    let live = live_nodes::list(store, &plane.cluster_key, now, None, NODES, &HashSet::new()).await?;
    let mut ids: BTreeSet<ResourceId> = live.into_iter().map(|node| node.record.node_id).collect();
    ids.extend(plane.inquiries.nodes());
    Ok(ids.into_iter().filter(|id| filter.node.as_ref().is_none_or(|node| node == id)).take(NODES).collect())
}

/// Asks these nodes, and collects their answers by node name.
async fn ask_nodes(plane: &Plane, nodes: &[ResourceId], filter: &Filter) -> Result<Seen, ApiError> {
    let calls = nodes.iter().map(|id| async move {
        let reply = plane.inquiries.ask(id, Kind::ListFills(ListRunningFills {})).await;
        Ok::<_, ApiError>((id, reply))
    });
    let mut seen = Seen::default();
    for (id, reply) in at_once::all(calls).await? {
        match reply {
            Ok(Reply::Fills(running)) => seen.fills.extend(running.fills.into_iter().filter(|fill| filter.takes(fill))),
            Ok(Reply::Answer(_) | Reply::Failed(_) | Reply::Upstreams(_) | Reply::Told(_)) => {
                seen.silent.insert(id.clone(), "its reply is none".to_owned());
            }
            Err(silence) => drop(seen.silent.insert(id.clone(), silence.to_string())),
        }
    }
    seen.fills.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

impl Filter {
    fn takes(&self, fill: &pb::Fill) -> bool {
        self.rule.as_ref().is_none_or(|rule| names::rule(rule) == fill.rule)
            && self.repository.as_ref().is_none_or(|repository| names::repository(repository) == fill.repository)
    }
}

fn read_filter(text: &str) -> Result<Filter, Violations> {
    let mut filter = Filter::default();
    for term in filter::parse(text)? {
        let wrong = |error| term.wrong(format!("`{}` {error}", term.field));
        let twice = match (term.field.as_str(), &term.value) {
            ("rule", Value::Text(name)) => filter.rule.replace(names::parse_rule(name).map_err(wrong)?).is_some(),
            ("repository", Value::Text(name)) => {
                filter.repository.replace(names::parse_repository(name).map_err(wrong)?).is_some()
            }
            ("node", Value::Text(name)) => filter.node.replace(names::parse_node(name).map_err(wrong)?).is_some(),
            _ => {
                return Err(term.wrong(
                    "a term is `rule = \"rules/hub\"`, `repository = \"repositories/hub/library/nginx\"` or \
                     `node = \"nodes/node-1\"`",
                ));
            }
        };
        if twice {
            return Err(term.wrong(format!("`{}` is given twice", term.field)));
        }
    }
    Ok(filter)
}

fn join_ids(ids: &BTreeSet<ResourceId>) -> Option<String> {
    let ids: Vec<&str> = ids.iter().map(ResourceId::as_str).collect();
    (!ids.is_empty()).then(|| ids.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_name_rules_repositories_and_nodes() {
        let filter = read_filter(r#"rule = "rules/hub" AND node = "nodes/node-1""#).unwrap();
        let (rule, node) = ("hub".parse().unwrap(), "node-1".parse().unwrap());
        assert_eq!(filter, Filter { rule: Some(rule), repository: None, node: Some(node) });
        assert!(filter.takes(&pb::Fill { rule: "rules/hub".into(), ..Default::default() }));
        assert!(!filter.takes(&pb::Fill { rule: "rules/quay".into(), ..Default::default() }));
        for bad in [r#"rule = "hub""#, "rule = true", r#"node = "nodes/a" AND node = "nodes/b""#, r#"state = "x""#] {
            assert!(read_filter(bad).is_err(), "{bad}");
        }
    }
}
