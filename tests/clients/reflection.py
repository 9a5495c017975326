"""Talks to Entrepot's API with messages that are built from server reflection alone.

`reflection.py --list` prints the checks; `reflection.py ADDRESS KEY CHECK` runs one.
"""

import sys
import uuid

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status


class Client:
    """Calls any method by its name, with JSON-like values."""

    def __init__(self, address, key):
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)
        self.metadata = [("authorization", f"Bearer {key}")] if key else []

    def call(self, service, method, **fields):
        descriptor = self.pool.FindServiceByName(f"entrepot.v1.{service}").FindMethodByName(method)
        request = message_factory.GetMessageClass(descriptor.input_type)()
        answer = message_factory.GetMessageClass(descriptor.output_type)
        json_format.ParseDict(fields, request, descriptor_pool=self.pool)
        call = self.channel.unary_unary(
            f"/{descriptor.containing_service.full_name}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        message = call(request, metadata=self.metadata, timeout=20)
        return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=self.pool)

    def failure(self, code, service, method, **fields):
        """Makes a call that must fail with a code; returns its error information and its field violations."""
        try:
            answer = self.call(service, method, **fields)
        except grpc.RpcError as error:
            assert error.code() == code, f"{error.code()}: {error.details()}"
            assert error.details(), "the error has no message"
            return details(error)
        raise AssertionError(f"{method} should have failed; it answered {answer}")


def details(error):
    status = rpc_status.from_call(error)
    assert status, "the error has no details"
    info, violations = error_details_pb2.ErrorInfo(), {}
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations.update({violation.field: violation.description for violation in bad.field_violations})
    assert info.reason and info.domain, f"the error has no ErrorInfo: {status}"
    return info, violations


def reflection_lists_every_service(client):
    services = set(client.database.get_services())
    names = ("AccessKeys", "Answers", "Images", "LoginTokens", "Nodes", "Principals", "Repositories", "Rules", "Upstreams")
    expected = {f"entrepot.v1.{name}" for name in names}
    assert expected <= services, services
    assert not [name for name in services if name.startswith("entrepot.node.")], services


def reflection_knows_the_details_of_errors(client):
    for name in ("ErrorInfo", "BadRequest", "RetryInfo", "Status"):
        client.pool.FindMessageTypeByName(f"google.rpc.{name}")


def a_rule_is_created_read_changed_and_deleted(client):
    rule_id = f"py-{uuid.uuid4().hex[:8]}"
    made = client.call("Rules", "CreateRule", rule_id=rule_id, rule={"upstream": "upstreams/local"})
    assert made["name"] == f"rules/{rule_id}" and made["prefix"] == rule_id and made["etag"], made
    changed = client.call(
        "Rules", "UpdateRule", rule={"name": made["name"], "upstream_prefix": "team", "etag": made["etag"]}
    )
    assert changed["upstream_prefix"] == "team" and changed["etag"] != made["etag"], changed
    found = client.call("Rules", "GetRule", name=made["name"])
    assert found == changed, (found, changed)
    client.call("Rules", "DeleteRule", name=made["name"])
    client.failure(grpc.StatusCode.NOT_FOUND, "Rules", "GetRule", name=made["name"])


def a_repeated_request_gets_the_first_answer(client):
    rule_id, request_id = f"py-{uuid.uuid4().hex[:8]}", str(uuid.uuid4())
    request = {"rule_id": rule_id, "rule": {"upstream": "upstreams/local"}, "request_id": request_id}
    assert client.call("Rules", "CreateRule", **request) == client.call("Rules", "CreateRule", **request)


def repositories_and_images_are_listed(client):
    repositories = client.call("Repositories", "ListRepositories")["repositories"]
    (app,) = [found for found in repositories if found["name"] == "repositories/demo/team/app"]
    assert app["cached"] and app["create_time"], app
    (image,) = client.call("Images", "ListImages", parent=app["name"])["images"]
    assert [tag["tag"] for tag in image["tags"]] == ["v1"], image
    assert {"linux/amd64", "linux/arm64/v8"} <= set(image["platforms"]), image


def a_bad_prefix_is_refused_by_field(client):
    rule = {"prefix": "Not/Legal", "upstream": "upstreams/local"}
    _, violations = client.failure(
        grpc.StatusCode.INVALID_ARGUMENT, "Rules", "CreateRule", rule_id="bad", rule=rule
    )
    assert violations.get("rule.prefix"), violations


def an_unknown_upstream_is_named(client):
    rule = {"upstream": "upstreams/nowhere"}
    info, _ = client.failure(grpc.StatusCode.NOT_FOUND, "Rules", "CreateRule", rule_id="lost", rule=rule)
    assert "upstreams/nowhere" in str(info), info


def a_stale_etag_is_refused(client):
    rule = {"name": "rules/demo", "upstream_prefix": "x", "etag": '"stale"'}
    client.failure(grpc.StatusCode.ABORTED, "Rules", "UpdateRule", rule=rule)
    assert "upstream_prefix" not in client.call("Rules", "GetRule", name="rules/demo")


def a_call_without_a_token_is_refused(client):
    client.metadata = []
    client.failure(grpc.StatusCode.UNAUTHENTICATED, "Rules", "ListRules")


def a_call_with_a_wrong_token_is_refused(client):
    client.metadata = [("authorization", "Bearer admin:wrong-secret")]
    client.failure(grpc.StatusCode.UNAUTHENTICATED, "Rules", "ListRules")


CHECKS = [
    reflection_lists_every_service,
    reflection_knows_the_details_of_errors,
    a_rule_is_created_read_changed_and_deleted,
    a_repeated_request_gets_the_first_answer,
    repositories_and_images_are_listed,
    a_bad_prefix_is_refused_by_field,
    an_unknown_upstream_is_named,
    a_stale_etag_is_refused,
    a_call_without_a_token_is_refused,
    a_call_with_a_wrong_token_is_refused,
]

if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:
        print(*[check.__name__ for check in CHECKS], sep="\n")
    else:
        address, key, name = sys.argv[1:]
        (check,) = [check for check in CHECKS if check.__name__ == name]
        check(Client(address, key))
