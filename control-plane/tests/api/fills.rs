//! Fills and answers as operators see them, with simulated nodes.

use entrepot_proto::node::v1 as node;
use entrepot_proto::node::v1::take_questions_request::Reply;
use entrepot_proto::node::v1::take_questions_response::Kind;
use entrepot_proto::v1 as pb;
use entrepot_test_support::wait_until;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::fixture::{Fixture, LIMIT, details, fields, kind};
use crate::node::{put_record, record};

/// A simulated node that accepts questions: it and `node-2` run fills, and `node-3` cannot be reached.
pub(crate) struct Played(JoinHandle<()>);

impl Played {
    async fn start(fixture: &Fixture, id: &'static str) -> Self {
        Self::replying(fixture, id, reply).await
    }

    /// A node that gives these replies to questions.
    pub(crate) async fn replying(
        fixture: &Fixture,
        id: &'static str,
        reply: impl Fn(&str, &Kind) -> Reply + Send + 'static,
    ) -> Self {
        let (say, said) = mpsc::channel(8);
        say.send(node::TakeQuestionsRequest { node_id: id.into(), ..Default::default() }).await.unwrap();
        let mut asked = fixture.nodes(id).take_questions(ReceiverStream::new(said)).await.unwrap().into_inner();
        #[expect(clippy::disallowed_methods, reason = "it is aborted with its owner")]
        let task = tokio::spawn(async move {
            while let Ok(Some(node::TakeQuestionsResponse { question, node_id, kind })) = asked.message().await {
                let reply = reply(&node_id, &kind.unwrap());
                let reply = node::TakeQuestionsRequest { node_id: String::new(), question, reply: Some(reply) };
                say.send(reply).await.unwrap();
            }
        });
        Self(task)
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn reply(node_id: &str, kind: &Kind) -> Reply {
    let failed = |failure: node::QuestionFailure| {
        Reply::Failed(node::FailedQuestion { failure: failure.into(), reason: "port 5003 is shut".into() })
    };
    let fill = |number| pb::Fill {
        name: format!("nodes/{node_id}/fills/{number}"),
        node: format!("nodes/{node_id}"),
        rule: format!("rules/r{}", number % 2),
        ..Default::default()
    };
    match kind {
        _ if node_id == "node-3" => failed(node::QuestionFailure::Unreachable),
        Kind::ListFills(_) => Reply::Fills(node::RunningFills { fills: (0..3).rev().map(fill).collect() }),
        Kind::Answer(id) if id.ends_with('1') => {
            Reply::Answer(pb::Answer { name: format!("answers/{id}"), ..Default::default() })
        }
        Kind::Answer(_) => failed(node::QuestionFailure::Forgotten),
        // A node of an earlier release answers like this.
        Kind::ListUpstreams(_) | Kind::Forget(_) => failed(node::QuestionFailure::Unspecified),
    }
}

async fn until_asked(fixture: &Fixture, nodes: usize) {
    wait_until(LIMIT, "nodes can be asked", async || {
        let listed = fixture.fills().list_fills(pb::ListFillsRequest::default()).await;
        listed.is_ok_and(|listed| listed.into_inner().fills.len() == 3 * nodes)
    })
    .await;
}

fn answer(node: &str, last: char) -> pb::GetAnswerRequest {
    pb::GetAnswerRequest { name: format!("answers/{node}-{}{last}", "0".repeat(31)) }
}

#[tokio::test]
async fn nodes_are_asked_on_their_own_line_or_through_another_and_silent_ones_are_named() {
    let fixture = Fixture::start().await;
    for id in ["node-1", "node-2", "node-3"] {
        put_record(&fixture.world, &record(&fixture.world, id, None)).await;
    }
    let error = fixture.fills().list_fills(pb::ListFillsRequest::default()).await.unwrap_err();
    assert_eq!(kind(&error), (Code::Unavailable, "NODE_SILENT".into()), "no node is connected yet");
    let _played = Played::start(&fixture, "node-1").await;
    until_asked(&fixture, 2).await;

    let answered = fixture.fills().list_fills(pb::ListFillsRequest::default()).await.unwrap();
    assert_eq!(answered.metadata().get("entrepot-silent-nodes").unwrap(), "node-3");
    let (mut token, mut pages) = (String::new(), Vec::new());
    let filter = r#"rule = "rules/r0""#.to_owned();
    loop {
        let request = pb::ListFillsRequest { page_size: 3, page_token: token, filter: filter.clone() };
        let page = fixture.fills().list_fills(request).await.unwrap().into_inner();
        pages.push(page.fills.into_iter().map(|fill| fill.name).collect::<Vec<_>>());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let [first, second] = &pages[..] else { panic!("{pages:?}") };
    assert_eq!(first, &["nodes/node-1/fills/0", "nodes/node-1/fills/2", "nodes/node-2/fills/0"]);
    assert_eq!(second, &["nodes/node-2/fills/2"]);

    let mut states = fixture.fills().watch_fills(pb::WatchFillsRequest::default()).await.unwrap().into_inner();
    for _ in 0..2 {
        let state = states.message().await.unwrap().unwrap();
        assert_eq!((state.fills.len(), state.silent_nodes), (6, vec!["nodes/node-3".to_owned()]));
    }

    for node in ["node-1", "node-2"] {
        let found = fixture.answers().get_answer(answer(node, '1')).await.unwrap().into_inner();
        assert_eq!(found.name, answer(node, '1').name);
        let error = fixture.answers().get_answer(answer(node, '2')).await.unwrap_err();
        assert_eq!(kind(&error), (Code::NotFound, "NOT_FOUND".into()));
        assert!(error.message().contains("10,000"), "{error:?}");
    }
    let error = fixture.answers().get_answer(answer("node-3", '1')).await.unwrap_err();
    assert_eq!(kind(&error), (Code::Unavailable, "NODE_SILENT".into()));
    assert!(error.message().contains("port 5003 is shut"), "{error:?}");
    assert_eq!(details(&error).error_info().unwrap().metadata["node"], "nodes/node-3");
    let error = fixture.answers().get_answer(answer("node-4", '1')).await.unwrap_err();
    assert_eq!(kind(&error), (Code::NotFound, "NOT_FOUND".into()));
    assert!(error.message().contains("`nodes/node-4` does not exist or is not alive"), "{error:?}");
}

#[tokio::test]
async fn a_line_that_breaks_is_no_line_any_more() {
    let fixture = Fixture::start().await;
    put_record(&fixture.world, &record(&fixture.world, "node-1", None)).await;
    let played = Played::start(&fixture, "node-1").await;
    until_asked(&fixture, 1).await;
    drop(played);
    wait_until(LIMIT, "the node cannot be asked", async || {
        let listed = fixture.fills().list_fills(pb::ListFillsRequest::default()).await;
        listed.is_err_and(|error| error.code() == Code::Unavailable)
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_with_the_field() {
    let fixture = Fixture::start().await;
    let request = pb::ListFillsRequest { page_size: -1, filter: "rule = true".into(), ..Default::default() };
    assert_eq!(fields(&fixture.fills().list_fills(request).await.unwrap_err()), ["page_size", "filter"]);
    let request = pb::WatchFillsRequest { filter: "state = \"x\"".into() };
    assert_eq!(fields(&fixture.fills().watch_fills(request).await.unwrap_err()), ["filter"]);
    for name in ["", "node-1-7", "answers/", "answers/node-1-7"] {
        let request = pb::GetAnswerRequest { name: name.into() };
        assert_eq!(fields(&fixture.answers().get_answer(request).await.unwrap_err()), ["name"], "{name}");
    }
    let (say, said) = mpsc::channel(1);
    say.send(node::TakeQuestionsRequest { node_id: "node-2".into(), ..Default::default() }).await.unwrap();
    let mut line = fixture.nodes("node-1").take_questions(ReceiverStream::new(said)).await.unwrap().into_inner();
    assert_eq!(fields(&line.message().await.unwrap_err()), ["node_id"]);
}
