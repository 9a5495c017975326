//! Damaged objects as operators see them.

use entrepot_domain::Digest;
use entrepot_proto::v1 as pb;
use entrepot_proto::v1::damaged_objects_client::DamagedObjectsClient;
use entrepot_records::{DamageRecord, encode, layout};
use tonic::Code;
use uuid::Uuid;

use crate::fixture::{ADMIN, Fixture, fields, kind};

#[tokio::test]
async fn damaged_objects_are_listed_page_by_page_to_administrators() {
    let fixture = Fixture::start().await;
    let (store, now) = (&fixture.world.store, fixture.world.clock.now());
    for number in 1..=5_u128 {
        let mut record = DamageRecord::new(Digest::sha256(&number.to_be_bytes()), now);
        record.note("node-1", false);
        record.note("node-2", number % 2 == 0);
        record.set_aside_time = (number % 2 == 1).then_some(now);
        store.put(&layout::damage(Uuid::from_u128(number)), encode(&record)).await.unwrap();
    }
    store.put(&layout::damage(Uuid::from_u128(6)), "{".into()).await.unwrap();
    let mut client = DamagedObjectsClient::with_interceptor(fixture.channel.clone(), fixture.login(ADMIN));
    let (mut token, mut pages) = (String::new(), Vec::new());
    loop {
        let request = pb::ListDamagedObjectsRequest { page_size: 2, page_token: token };
        let answer = client.list_damaged_objects(request).await.unwrap().into_inner();
        pages.push(answer.damaged_objects);
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1], "what cannot be read is left out");
    let [first, second] = &pages[0][..] else { panic!("{pages:?}") };
    assert_eq!(first.name, format!("damagedObjects/{}", Uuid::from_u128(1)));
    assert_eq!(first.key, layout::content(Uuid::from_u128(1)).as_str());
    assert_eq!(first.digest, Digest::sha256(&1_u128.to_be_bytes()).to_string());
    assert_eq!(
        (&*first.damaged_for_nodes, first.right_for_nodes.len()),
        (&["nodes/node-1".to_owned(), "nodes/node-2".to_owned()][..], 0)
    );
    assert!(first.find_time.is_some() && first.set_aside_time.is_some() && second.set_aside_time.is_none());
    assert_eq!(
        (&*second.damaged_for_nodes, &*second.right_for_nodes),
        (&["nodes/node-1".to_owned()][..], &["nodes/node-2".to_owned()][..])
    );

    let request = pb::ListDamagedObjectsRequest { page_size: -1, page_token: "x".into() };
    assert_eq!(fields(&client.list_damaged_objects(request).await.unwrap_err()), ["page_size", "page_token"]);
    let mut nobody = DamagedObjectsClient::new(fixture.channel.clone());
    let error = nobody.list_damaged_objects(pb::ListDamagedObjectsRequest::default()).await.unwrap_err();
    assert_eq!(kind(&error), (Code::Unauthenticated, "CREDENTIALS_MISSING".into()));
}
