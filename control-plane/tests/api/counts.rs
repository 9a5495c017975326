//! Counts are kept, not counted, and what a deleted repository had is removed in parts.

use std::time::{Duration, Instant};

use entrepot_proto::v1 as pb;
use entrepot_test_support::wait_until;
use tokio_postgres::SimpleQueryMessage;

use crate::content::{Repository, list_images, list_repositories, report};
use crate::fixture::{ADMIN, Fixture, LIMIT, World};

/// Changes rows of two repositories at random, as statements of this and of other releases may.
const CHANGES: &str = "
    DO $$
    DECLARE
        own     uuid;
        one     text;
        another text;
        called  text;
    BEGIN
        PERFORM setseed(0.7319);
        INSERT INTO repositories (incarnation, name, create_time)
        SELECT ('00000000-0000-0000-0000-00000000000' || n)::uuid, 'counted/' || n, now() FROM generate_series(1, 2) n;
        FOR step IN 1 .. 3000 LOOP
            own := ('00000000-0000-0000-0000-00000000000' || 1 + floor(random() * 2))::uuid;
            one := 'sha256:' || floor(random() * 12);
            another := 'sha256:' || floor(random() * 12);
            called := 'v' || floor(random() * 8);
            CASE floor(random() * 9)
            WHEN 0, 1 THEN
                INSERT INTO images (incarnation, digest, media_type, manifest_size_bytes, content_size_bytes, platforms,
                                    cache_time)
                SELECT own, digest, 'application/json', 1, 1, '{}', now() FROM unnest(ARRAY[one, 'sha256:only-' || step]) digest
                ON CONFLICT ON CONSTRAINT images_pkey DO UPDATE SET deleted = false;
            WHEN 2 THEN UPDATE images SET deleted = true WHERE incarnation = own AND digest IN (one, another);
            WHEN 3 THEN DELETE FROM images WHERE incarnation = own AND digest = one;
            WHEN 4 THEN
                INSERT INTO tags (incarnation, tag, digest, revision)
                SELECT own, tag, one, 1 FROM unnest(ARRAY[called, 'latest']) tag
                ON CONFLICT ON CONSTRAINT tags_pkey DO UPDATE SET digest = excluded.digest;
            WHEN 5 THEN UPDATE tags SET digest = nullif(one, another) WHERE incarnation = own AND tag <= called;
            WHEN 6 THEN DELETE FROM tags WHERE incarnation = own AND tag = called;
            WHEN 7 THEN
                INSERT INTO image_children (incarnation, parent, child)
                SELECT own, digest, child FROM images, unnest(ARRAY[another, 'sha256:0']) child
                 WHERE incarnation = own AND digest = one
                ON CONFLICT DO NOTHING;
            ELSE DELETE FROM image_children WHERE incarnation = own AND parent = one;
            END CASE;
        END LOOP;
    END $$";

const COUNTS: &str = "SELECT image_count FROM repositories WHERE name LIKE 'counted/%' ORDER BY name";

/// What is kept and is not what there is: a line for each row.
const WRONG: &str = "
    SELECT 'image ' || digest FROM images i
     WHERE tag_count <> (SELECT count(*) FROM tags t WHERE t.incarnation = i.incarnation AND t.digest = i.digest)
        OR parent_count <> (SELECT count(*) FROM image_children c WHERE c.incarnation = i.incarnation AND c.child = i.digest)
    UNION ALL
    SELECT 'repository ' || name || ' ' || image_count FROM repositories r
     WHERE image_count <> (
           SELECT count(*) FROM images i
            WHERE i.incarnation = r.incarnation AND NOT deleted
              AND (EXISTS (SELECT FROM tags t WHERE t.incarnation = i.incarnation AND t.digest = i.digest)
                   OR NOT EXISTS (SELECT FROM image_children c
                                   WHERE c.incarnation = i.incarnation AND c.child = i.digest)))";

async fn lines(world: &World, sql: &str) -> Vec<String> {
    let line = |message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        row.get(0).map(str::to_owned)
    };
    world.sql(sql).await.into_iter().filter_map(line).collect()
}

#[tokio::test]
async fn counts_are_right_whatever_has_been_written() {
    let fixture = Fixture::start().await;
    let world = &fixture.world;
    world.sql(CHANGES).await;
    let counts = lines(world, COUNTS).await;
    assert!(counts.len() == 2 && counts.iter().all(|count| count.parse::<i64>().unwrap() > 100), "{counts:?}");
    assert_eq!(lines(world, WRONG).await, Vec::<String>::new());
    for kind in ["tag_count > 1", "parent_count > 1", "NOT listed AND NOT deleted", "deleted"] {
        let some = format!("SELECT digest FROM images WHERE {kind} LIMIT 1");
        assert_eq!(lines(world, &some).await.len(), 1, "the changes have made one with {kind}");
    }

    // With the same incarnation it has again what is left of it.
    world
        .sql(
            "DELETE FROM repositories WHERE name = 'counted/1';
             INSERT INTO repositories (incarnation, name, create_time)
             VALUES ('00000000-0000-0000-0000-000000000001', 'counted/1', now())
             ON CONFLICT (incarnation) DO UPDATE SET create_time = excluded.create_time",
        )
        .await;
    assert_eq!(lines(world, WRONG).await, Vec::<String>::new());
    assert_eq!(lines(world, COUNTS).await, counts);
    assert_eq!(lines(world, "SELECT incarnation::text FROM remains").await, Vec::<String>::new());
}

#[tokio::test]
async fn what_a_deleted_repository_had_is_removed_and_nothing_of_another() {
    let fixture = Fixture::start().await;
    let kept = Repository::create(&fixture.world, "demo/app").await;
    report(&fixture, vec![kept.cached(b"a", 0), kept.moved("v1", b"a", 1)]).await;
    fixture.world.sql(CHANGES).await;
    // More than one part.
    fixture
        .world
        .sql(
            "INSERT INTO tags (incarnation, tag, digest, revision)
             SELECT '00000000-0000-0000-0000-000000000001', 'many-' || n, 'sha256:0', 1 FROM generate_series(1, 5000) n;
             DELETE FROM repositories WHERE name LIKE 'counted/%'",
        )
        .await;
    assert_eq!(list_repositories(&fixture, "").await, ["demo/app"]);
    // The first pass comes at the start.
    let fixture = fixture.stop().await.launch(Some(ADMIN)).await;
    fixture.plane.ready(LIMIT).await.unwrap();
    const LEFT: &str = "
        SELECT (SELECT count(*) FROM remains) + (SELECT count(*) FROM image_children) + (SELECT count(*) FROM images)
               + (SELECT count(*) FROM tags) - 2";
    wait_until(LIMIT, "nothing is left", async || lines(&fixture.world, LEFT).await == ["0"]).await;
    assert_eq!(list_images(&fixture, "demo/app", r#"tag = "v1""#).await.len(), 1);
    assert_eq!(lines(&fixture.world, WRONG).await, Vec::<String>::new());
}

/// How many images a repository has in the long test.
const MANY: usize = 1_000_000;

#[tokio::test]
#[ignore = "it takes minutes: scripts/suite lists"]
async fn all_pages_of_a_million_images_take_as_long() {
    let fixture = Fixture::start().await;
    let app = Repository::create(&fixture.world, "demo/app").await;
    report(&fixture, vec![app.created()]).await;
    let digest = "'sha256:' || encode(sha256(n::text::bytea), 'hex')";
    let images = format!(
        "INSERT INTO images (incarnation, digest, media_type, manifest_size_bytes, content_size_bytes, platforms, cache_time)
         SELECT '{}', {digest}, 'application/vnd.oci.image.manifest.v1+json', 500, 4000, '{{}}', now() - n * interval '1 s'
           FROM generate_series(1, {MANY}) n",
        app.incarnation
    );
    let tags = format!(
        "INSERT INTO tags (incarnation, tag, digest, revision)
         SELECT '{}', 'v' || n, {digest}, 1 FROM generate_series(1, {MANY}, 10) n",
        app.incarnation
    );
    for sql in [&images, &tags, "ANALYZE"] {
        fixture.world.sql(sql).await;
    }
    for (filter, expected) in [("", MANY), ("tagged = true", MANY / 10), ("tagged = false", MANY - MANY / 10)] {
        let (mut found, mut took, mut token) = (0, Vec::new(), String::new());
        loop {
            let parent = "repositories/demo/app".to_owned();
            let request = pb::ListImagesRequest { parent, page_size: 1000, page_token: token, filter: filter.into() };
            let begun = Instant::now();
            let page = fixture.images().list_images(request).await.unwrap().into_inner();
            took.push(begun.elapsed());
            found += page.images.len();
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(found, expected, "{filter}");
        println!("measured: {} pages of 1,000 images, `{filter}`: {}", took.len(), told(&took));
    }
    let mut took = Vec::new();
    for _ in 0..1000 {
        let begun = Instant::now();
        let get = pb::GetRepositoryRequest { name: "repositories/demo/app".into() };
        let repository = fixture.repositories().get_repository(get).await.unwrap().into_inner();
        took.push(begun.elapsed());
        assert_eq!(repository.image_count, MANY as i64);
    }
    println!("measured: GetRepository: {}", told(&took));
}

/// The first of some times, the last, and those that half and 99 % of them do not exceed.
fn told(took: &[Duration]) -> String {
    let mut sorted = took.to_vec();
    sorted.sort();
    let part = |percent: usize| sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)];
    format!("first {:?}, last {:?}, p50 {:?}, p99 {:?}", took[0], took[took.len() - 1], part(50), part(99))
}
