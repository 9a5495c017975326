use super::super::history::{Subject, Version};
use super::*;

const HOLD: Duration = Duration::from_secs(5);

/// A subject with a version published at each of these seconds, each in 0.1 s: `v0`, `v1` and so on.
fn subject(published: &[u64]) -> Subject {
    let version = |(number, at): (usize, &u64)| Version {
        digest: Some(format!("v{number}")),
        published: Span { begin: Duration::from_secs(*at), end: Duration::from_millis(at * 1000 + 100) },
    };
    let versions = published.iter().enumerate().map(version).collect();
    Subject { repository: "demo/app".to_owned(), reference: "a".to_owned(), rule: "demo", versions }
}

fn history(subjects: Vec<Subject>) -> History {
    History { nodes: 3, subjects, ..History::default() }
}

/// From and to these tenths of seconds.
fn span(begin: u64, end: u64) -> Span {
    Span { begin: Duration::from_millis(begin * 100), end: Duration::from_millis(end * 100) }
}

impl History {
    fn answered(mut self, node: usize, span: Span, said: Said) -> Self {
        self.answers.push(Answer { node, subject: 0, span, said });
        self
    }

    fn means(self, node: usize, span: Span, digest: &str) -> Self {
        self.answered(node, span, Said::Means(digest.to_owned(), Source::Records))
    }

    fn called(mut self, span: Span, effect: Effect) -> Self {
        self.calls.push(Call { what: format!("{effect:?}"), span, effect, lagging: vec![] });
        self
    }

    fn lagging(mut self, node: usize) -> Self {
        self.calls.last_mut().expect("something was called").lagging.push(node);
        self
    }

    /// The numbers of the answers that are wrong.
    fn wrong(&self) -> Vec<usize> {
        judge(self, HOLD).into_iter().map(|wrong| wrong.answer).collect()
    }
}

#[test]
fn a_request_that_began_after_a_call_had_returned_gets_what_the_call_has_made_so() {
    let history = history(vec![subject(&[0, 10])])
        .means(0, span(90, 91), "v0")
        .called(span(120, 130), Effect::Renewed(0))
        .means(1, span(129, 140), "v0")
        .means(1, span(130, 131), "v0")
        .means(2, span(131, 132), "v1");
    assert_eq!(history.wrong(), [2]);
    let why = &judge(&history, HOLD)[0].why;
    assert!(why.contains("version 0, but 1 was there before `Renewed(0)`, which went on from 12.000s"), "{why}");
}

#[test]
fn what_the_upstream_has_published_while_the_call_went_on_may_be_seen_or_not() {
    let history = history(vec![subject(&[0, 10])])
        .called(span(100, 130), Effect::Renewed(0))
        .means(0, span(140, 141), "v0")
        .means(1, span(140, 141), "v1");
    assert_eq!(history.wrong(), [] as [usize; 0]);
}

#[test]
fn an_answer_that_says_that_the_store_is_away_is_excused_and_so_is_none() {
    let history = history(vec![subject(&[0, 10])])
        .called(span(120, 130), Effect::Renewed(0))
        .answered(0, span(140, 141), Said::Means("v0".to_owned(), Source::StoreAway))
        .answered(0, span(140, 141), Said::Nothing)
        .answered(0, span(140, 141), Said::Means("v0".to_owned(), Source::Upstream));
    assert_eq!(history.wrong(), [2]);
}

#[test]
fn what_was_moved_without_a_call_is_seen_a_hold_time_after_somebody_has_got_it() {
    let history = history(vec![subject(&[0, 10])]).means(0, span(102, 103), "v1").means(1, span(152, 153), "v0").means(
        2,
        span(153, 154),
        "v0",
    );
    assert_eq!(history.wrong(), [2], "a hold time after 10.3 s");
}

#[test]
fn what_a_node_has_from_its_upstream_alone_binds_nobody() {
    let history = history(vec![subject(&[0, 10])])
        .answered(0, span(102, 103), Said::Means("v1".to_owned(), Source::Upstream))
        .means(2, span(300, 301), "v0");
    assert_eq!(history.wrong(), [] as [usize; 0]);
}

#[test]
fn what_was_deleted_as_an_image_does_not_come_back_once_the_upstream_means_something_else() {
    let delete = || Effect::Deleted { subject: 0, digest: "v0".to_owned() };
    let replaced = history(vec![subject(&[0, 10])]).called(span(120, 130), delete());
    assert_eq!(replaced.means(1, span(131, 132), "v0").wrong(), [0]);
    let current = history(vec![subject(&[0, 20])]).called(span(120, 130), delete());
    assert_eq!(current.means(1, span(131, 132), "v0").wrong(), [] as [usize; 0], "it was fetched again");
}

#[test]
fn what_the_upstream_has_removed_is_nothing_once_it_is_deleted() {
    let mut gone = subject(&[0, 10]);
    gone.versions[1].digest = None;
    let history = history(vec![gone])
        .means(0, span(110, 111), "v0")
        .called(span(120, 130), Effect::Renewed(0))
        .answered(0, span(131, 132), Said::Absent)
        .means(1, span(131, 132), "v0");
    assert_eq!(history.wrong(), [2]);
}

#[test]
fn what_is_there_is_never_said_to_be_absent_but_without_its_rule() {
    let all = || history(vec![subject(&[0])]);
    assert_eq!(all().answered(0, span(10, 11), Said::Absent).wrong(), [0]);
    let severed = all()
        .called(span(100, 110), Effect::Severed("demo"))
        .called(span(200, 210), Effect::Restored("demo"))
        .lagging(2)
        .answered(0, span(90, 99), Said::Absent)
        .answered(0, span(90, 101), Said::Absent)
        .answered(0, span(209, 230), Said::Absent)
        .answered(0, span(211, 230), Said::Absent)
        .answered(2, span(211, 230), Said::Absent);
    assert_eq!(severed.wrong(), [0, 3]);
}

#[test]
fn without_a_rule_nothing_is_filled_that_nobody_had_asked_for() {
    let severed = || {
        let all = history(vec![subject(&[0])]).called(span(100, 110), Effect::Severed("demo")).lagging(2);
        all.called(span(200, 210), Effect::Restored("demo"))
    };
    assert_eq!(severed().means(1, span(120, 130), "v0").wrong(), [0]);
    assert_eq!(severed().means(2, span(120, 130), "v0").wrong(), [] as [usize; 0], "it was said to lag");
    assert_eq!(severed().means(1, span(120, 205), "v0").wrong(), [] as [usize; 0], "there may be a rule again");
    assert_eq!(severed().means(1, span(50, 60), "v0").means(1, span(120, 130), "v0").wrong(), [] as [usize; 0]);
}

#[test]
fn under_a_new_rule_all_is_as_good_as_never_confirmed_until_it_goes_again() {
    let restored = history(vec![subject(&[0, 10])])
        .called(span(120, 130), Effect::Restored("demo"))
        .lagging(1)
        .called(span(140, 150), Effect::Severed("demo"))
        .means(0, span(131, 132), "v0")
        .means(1, span(131, 132), "v0")
        .means(0, span(139, 141), "v0")
        .means(0, span(160, 161), "v0");
    assert_eq!(restored.wrong(), [0]);
}

#[test]
fn what_nobody_has_published_is_wrong_whenever_it_is_said() {
    let history = history(vec![subject(&[0, 10])]).means(0, span(50, 60), "v1").means(0, span(50, 60), "v7");
    assert_eq!(history.wrong(), [0, 1]);
}
