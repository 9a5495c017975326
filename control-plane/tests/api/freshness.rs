//! The freshness policy of a rule: set, shown, changed, refused, explained, and sent to nodes.

use entrepot_proto::v1 as pb;
use entrepot_proto::v1::rule::{Mode, WhenDeleted, WhenDenied};
use prost_types::{Duration, FieldMask};
use tonic::Code;

use crate::fixture::{Fixture, create_rule, fields};

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn own(pattern: &str, window: Option<Duration>, mode: Mode) -> pb::TagWindow {
    pb::TagWindow { pattern: pattern.into(), window, mode: mode.into() }
}

/// A rule that differs from the defaults in every field.
fn special() -> pb::Rule {
    pb::Rule {
        window: seconds(0),
        mode: Mode::Background.into(),
        immutable_tags: vec!["v*".into(), "*-release".into()],
        max_stale: seconds(604_800),
        when_deleted: WhenDeleted::Drop.into(),
        when_denied: WhenDenied::Fail.into(),
        tag_windows: vec![own("latest", seconds(300), Mode::Unspecified), own("edge*", None, Mode::Off)],
        tag_list_window: seconds(60),
        referrers_window: seconds(120),
        ..create_rule("demo", "demo", "quay").rule.unwrap()
    }
}

fn policy(rule: &pb::Rule) -> pb::Rule {
    let all = rule.clone();
    pb::Rule {
        window: all.window,
        mode: all.mode,
        immutable_tags: all.immutable_tags,
        max_stale: all.max_stale,
        when_deleted: all.when_deleted,
        when_denied: all.when_denied,
        tag_windows: all.tag_windows,
        tag_list_window: all.tag_list_window,
        referrers_window: all.referrers_window,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_rule_that_says_nothing_has_the_defaults_and_shows_them() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    let expected = pb::Rule {
        window: seconds(86_400),
        mode: Mode::Blocking.into(),
        when_deleted: WhenDeleted::Keep.into(),
        when_denied: WhenDenied::Keep.into(),
        tag_list_window: seconds(300),
        referrers_window: seconds(21_600),
        ..Default::default()
    };
    let rule = fixture.create_rule("demo", "quay").await;
    assert_eq!(policy(&rule), expected);

    // As if a control plane that does not know these fields had written the row.
    fixture.world.sql("UPDATE rules SET policy = policy - '{window_seconds,mode,when_deleted}'::text[]").await;
    let get = pb::GetRuleRequest { name: rule.name };
    assert_eq!(policy(&fixture.rules().get_rule(get).await.unwrap().into_inner()), expected);
}

#[tokio::test]
async fn what_a_rule_says_is_kept_and_changed_field_by_field() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    let mut client = fixture.rules();
    let request = pb::CreateRuleRequest { rule: Some(special()), ..create_rule("demo", "demo", "quay") };
    let created = client.create_rule(request).await.unwrap().into_inner();
    assert_eq!(policy(&created), policy(&special()));
    let get = pb::GetRuleRequest { name: created.name.clone() };
    assert_eq!(client.get_rule(get).await.unwrap().into_inner(), created);

    let mut update = async |sent: pb::Rule, paths: &[&str]| {
        let rule = Some(pb::Rule { name: created.name.clone(), ..sent });
        let paths = paths.iter().map(ToString::to_string).collect();
        let request = pb::UpdateRuleRequest { rule, update_mask: Some(FieldMask { paths }) };
        client.update_rule(request).await.unwrap().into_inner()
    };
    // A field that is named in the mask but absent gets its default.
    let updated = update(pb::Rule::default(), &["window", "max_stale", "tag_windows"]).await;
    let expected = pb::Rule { window: seconds(86_400), max_stale: None, tag_windows: vec![], ..policy(&created) };
    assert_eq!(policy(&updated), expected);
    // Without a mask, fields that are set are changed, even to an explicit zero.
    let updated = update(pb::Rule { window: seconds(0), mode: Mode::Off.into(), ..Default::default() }, &[]).await;
    assert_eq!(policy(&updated), pb::Rule { window: seconds(0), mode: Mode::Off.into(), ..expected });
}

#[tokio::test]
async fn all_that_is_wrong_with_a_policy_is_told_at_once() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    let wrong = pb::Rule {
        window: seconds(-1),
        immutable_tags: vec!["no/slash".into()],
        tag_windows: vec![own("x", None, Mode::Unspecified)],
        tag_list_window: seconds(1_000_000),
        ..special()
    };
    let request = pb::CreateRuleRequest { rule: Some(wrong), ..create_rule("No", "demo", "quay") };
    let error = fixture.rules().create_rule(request).await.unwrap_err();
    let expected = ["rule_id", "rule.window", "rule.immutable_tags[0]", "rule.tag_windows[0]", "rule.tag_list_window"];
    assert_eq!((error.code(), fields(&error)), (Code::InvalidArgument, expected.map(str::to_owned).to_vec()));
    assert!(error.message().contains("set its `window`, its `mode`, or both"), "{}", error.message());
}

#[tokio::test]
async fn an_image_name_is_explained_with_the_window_that_applies() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    let request = pb::CreateRuleRequest { rule: Some(special()), ..create_rule("demo", "demo", "quay") };
    fixture.rules().create_rule(request).await.unwrap();
    let mut client = fixture.rules();
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    for (reference, window, mode, pattern, words) in [
        (":dev", seconds(0), Mode::Background, "", "asked for behind each pull"),
        (":latest", seconds(300), Mode::Background, "latest", "once 5m old"),
        (":edge-1", seconds(0), Mode::Off, "edge*", "never asked about it automatically"),
        (":v1", None, Mode::Unspecified, "v*", "never asked about it again, since it matches `v*`"),
        (&format!("@{digest}"), None, Mode::Unspecified, "", "a digest never changes"),
    ] {
        let request = pb::ExplainRuleRequest { image: format!("demo/app{reference}") };
        let answer = client.explain_rule(request).await.unwrap().into_inner();
        assert_eq!((answer.window, answer.mode(), answer.tag_pattern.as_str()), (window, mode, pattern), "{reference}");
        assert!(answer.explanation.contains(words), "{}", answer.explanation);
    }
}

#[tokio::test]
async fn what_a_newer_release_has_stored_with_a_rule_survives_an_update_and_opens_nothing() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    let rule = fixture.create_rule("demo", "quay").await;
    let newer = r#"{"colour": "red", "when_denied": "FAIL_SLOWLY"}"#;
    fixture.world.sql(&format!("UPDATE rules SET policy = policy || '{newer}'")).await;

    let changed = pb::Rule { name: rule.name, window: seconds(7), ..Default::default() };
    let request = pb::UpdateRuleRequest { rule: Some(changed), update_mask: None };
    let updated = fixture.rules().update_rule(request).await.unwrap().into_inner();
    assert_eq!((updated.window, updated.when_denied()), (seconds(7), WhenDenied::Fail));
    let kept = format!("SELECT FROM rules WHERE policy @> '{newer}' AND policy @> '{{\"window_seconds\": 7}}'");
    let rows = fixture.world.sql(&kept).await;
    assert!(rows.iter().any(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_))), "{rows:?}");
}
