//! No text in any field of any request may cause a server error. The requests are generated from the .proto files, those
//! of the health service among them.

#![expect(clippy::wildcard_enum_match_arm, reason = "only some kinds and codes matter here")]

use std::collections::HashMap;
use std::time::Duration;

use entrepot_proto::DESCRIPTORS;
use entrepot_proto::v1 as pb;
use futures_util::{StreamExt as _, stream};
use prost::Message as _;
use prost::bytes::{Buf as _, BufMut as _};
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldMask, FileDescriptorSet};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::fixture::{ADMIN, Fixture, fields, kind};

/// How deep nested messages are searched for fields.
const DEPTH: usize = 4;
/// How long to wait for the first answer of a stream.
const STREAM_LIMIT: Duration = Duration::from_millis(300);

/// How many calls are made at once.
const AT_ONCE: usize = 4;

/// A method and its request.
struct Method {
    path: String,
    input: String,
    is_stream: bool,
}

impl Method {
    fn is_for_nodes(&self) -> bool {
        self.path.contains(".node.v1.")
    }
}

/// The path to a string field: its number after the numbers of the messages around it.
type Way = Vec<i32>;

/// Messages as raw bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining()).to_vec()))
    }
}

/// All methods with a single request, for operators and for nodes, and all messages by name.
fn contract() -> (Vec<Method>, HashMap<String, DescriptorProto>) {
    let sets = [DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET];
    let files = sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).unwrap().file);
    let (mut methods, mut messages) = (vec![], HashMap::new());
    for file in files {
        let package = file.package().to_owned();
        let mut left: Vec<_> =
            file.message_type.iter().map(|m| (format!(".{package}.{}", m.name()), m.clone())).collect();
        while let Some((name, message)) = left.pop() {
            left.extend(message.nested_type.iter().map(|m| (format!("{name}.{}", m.name()), m.clone())));
            messages.insert(name, message);
        }
        for service in &file.service {
            methods.extend(service.method.iter().filter(|method| !method.client_streaming()).map(|method| Method {
                path: format!("/{package}.{}/{}", service.name(), method.name()),
                input: method.input_type().to_owned(),
                is_stream: method.server_streaming(),
            }));
        }
    }
    (methods, messages)
}

/// The paths to all string fields of a message.
fn ways(messages: &HashMap<String, DescriptorProto>, name: &str) -> Vec<Way> {
    let mut found = vec![];
    let mut left = vec![(name.to_owned(), Way::new())];
    while let Some((name, way)) = left.pop() {
        for field in &messages[&name].field {
            let way: Way = way.iter().copied().chain([field.number()]).collect();
            match field.r#type() {
                Type::String => found.push(way),
                Type::Message if way.len() < DEPTH => left.push((field.type_name().to_owned(), way)),
                _ => {}
            }
        }
    }
    found
}

/// A message that contains only `text`, at the end of `way`.
fn message(way: &[i32], text: &[u8]) -> Vec<u8> {
    way.iter().rev().fold(text.to_vec(), |inner, number| {
        let mut outer = Vec::with_capacity(inner.len() + 16);
        encode_key(number.cast_unsigned(), WireType::LengthDelimited, &mut outer);
        encode_varint(inner.len() as u64, &mut outer);
        outer.extend(inner);
        outer
    })
}

/// Further fields that a call needs so that more than a name is checked.
fn base(path: &str) -> Vec<u8> {
    let upstream = || Some(pb::Upstream { name: "upstreams/quay".to_owned(), ..Default::default() });
    let rule = || Some(pb::Rule { name: "rules/demo".to_owned(), ..Default::default() });
    match path.rsplit('/').next().unwrap() {
        "UpdateUpstream" => pb::UpdateUpstreamRequest { upstream: upstream(), ..Default::default() }.encode_to_vec(),
        "UpdateRule" => pb::UpdateRuleRequest { rule: rule(), ..Default::default() }.encode_to_vec(),
        _ => vec![],
    }
}

/// How a call ends. A stream that has begun, or waits, is fine.
async fn end(fixture: &Fixture, method: &Method, message: Vec<u8>) -> Code {
    let node = fixture.world.cluster_key().tokens().issue_node("node-1", "entrepot.node.v1", fixture.world.clock.now());
    let key = if method.is_for_nodes() { node.expose().clone() } else { ADMIN.to_owned() };
    end_of(fixture, method, message, &key).await
}

/// The same, for whoever has this key.
async fn end_of(fixture: &Fixture, method: &Method, message: Vec<u8>, key: &str) -> Code {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", MetadataValue::try_from(format!("Bearer {key}")).unwrap());
    let mut client = Grpc::new(fixture.channel.clone());
    client.ready().await.unwrap();
    let path = method.path.parse().unwrap();
    let answer = if method.is_stream {
        let first = async { client.server_streaming(request, path, Raw).await?.into_inner().message().await.map(drop) };
        tokio::time::timeout(STREAM_LIMIT, first).await.unwrap_or(Ok(()))
    } else {
        client.unary(request, path, Raw).await.map(drop)
    };
    answer.map_or_else(|status| status.code(), |()| Code::Ok)
}

#[tokio::test]
async fn no_text_in_any_field_is_an_error_of_the_server() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    fixture.create_rule("demo", "quay").await;
    let large = "x".repeat(1 << 20);
    let controls: String = (1_u8..32).map(char::from).chain(['\u{7f}', '\u{85}', '\u{9b}']).collect();
    let texts: [&[u8]; 6] = [
        b"a\0b",
        controls.as_bytes(),
        "\u{202e}\u{2066}\u{2028}\u{feff}".as_bytes(),
        large.as_bytes(),
        b"\xed\xa0\x80",
        b"\xff",
    ];
    let (methods, messages) = contract();
    let mut calls = vec![];
    for method in &methods {
        let base = base(&method.path);
        for way in ways(&messages, &method.input) {
            for text in texts {
                let message = [&base[..], &message(&way, text)].concat();
                calls.push((
                    method,
                    message,
                    format!("{way:?} {:?}", &text[..text.len().min(9)]),
                    std::str::from_utf8(text).is_ok(),
                ));
            }
        }
        calls.push((method, vec![0xff; 50], "junk".to_owned(), false));
    }
    let count = calls.len();
    let judged = calls.into_iter().map(|(method, message, what, is_readable)| {
        let fixture = &fixture;
        async move {
            let code = end(fixture, method, message).await;
            let right = match code {
                Code::InvalidArgument => true,
                Code::Ok
                | Code::NotFound
                | Code::FailedPrecondition
                | Code::AlreadyExists
                | Code::Aborted
                | Code::PermissionDenied
                | Code::Unauthenticated => is_readable,
                _ => false,
            };
            (!right).then(|| format!("{} {what}: {code:?}", method.path))
        }
    });
    let wrong: Vec<_> = stream::iter(judged).buffer_unordered(AT_ONCE).filter_map(async |wrong| wrong).collect().await;
    assert!(count > 500, "{count} calls are not all");
    assert!(wrong.is_empty(), "{} of {count}: {wrong:#?}", wrong.len());
}

#[tokio::test]
async fn of_what_strangers_send_to_the_service_for_nodes_nothing_is_read() {
    let fixture = Fixture::start().await;
    let (methods, _) = contract();
    let methods: Vec<_> = methods.iter().filter(|method| method.is_for_nodes()).collect();
    assert!(methods.len() > 2, "{}", methods.len());
    for method in methods {
        assert_eq!(end(&fixture, method, vec![0xff; 50]).await, Code::InvalidArgument, "{}", method.path);
        assert_eq!(end_of(&fixture, method, vec![0xff; 50], ADMIN).await, Code::Unauthenticated, "{}", method.path);
    }
}

#[tokio::test]
async fn what_is_said_about_a_text_is_no_longer_than_clients_take() {
    let fixture = Fixture::start().await;
    fixture.create_upstream("quay").await;
    fixture.create_rule("demo", "quay").await;
    let update = |paths: Vec<String>| pb::UpdateRuleRequest {
        rule: Some(pb::Rule { name: "rules/demo".to_owned(), ..Default::default() }),
        update_mask: Some(FieldMask { paths }),
    };
    for paths in [vec!["\u{202e}".repeat(300_000)], vec!["no".to_owned(); 1000]] {
        let status = fixture.rules().update_rule(update(paths)).await.unwrap_err();
        assert_eq!(kind(&status).0, Code::InvalidArgument);
        assert_eq!(fields(&status)[0], "update_mask");
        let bytes = status.message().len() + status.details().len();
        assert!(bytes < 8 * 1024, "{bytes} bytes");
    }
}
