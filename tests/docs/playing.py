"""Plays docs/vectors against a server: requests as they stand there, and every byte of the answers compared."""

import base64
import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from adamd.wire.channel import SERVICE, client_options
from adamd.wire.v1 import adamd_pb2 as pb

VECTORS = Path(__file__).parents[2] / "docs" / "vectors"
OTHER_EACH_TIME = ("chain", "id", "incarnation", "createdAt", "snapshotStep")
STREAMS = {
    "StepStream": ("stream_stream", pb.StepStreamResponse),
    "GetParameters": ("unary_stream", pb.GetParametersResponse),
}


def read(name):
    return json.loads((VECTORS / f"{name}.json").read_text())


def play(url, exchanges):
    """Send HTTP requests in order; AssertionError at the first answer that is another one."""
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=30)
    kept = {}
    try:
        for exchange in exchanges:
            request, wanted = exchange["request"], exchange["answer"]
            body = bytes.fromhex(request["hex"]) if "hex" in request else request.get("text", "").encode() or None
            sent = {name: kept.get(value.strip("{}"), value) for name, value in request["headers"].items()}
            connection.request(request["method"], request["path"], body, sent)
            answer = connection.getresponse()
            raw = answer.read()
            _compare(exchange["says"], answer, raw, wanted, kept)
            kept |= {name: answer.headers[header] for name, header in exchange.get("keep", {}).items()}
    finally:
        connection.close()


def _compare(says, answer, raw, wanted, kept):
    assert answer.status == wanted["status"], (says, answer.status, raw[:300])
    headers = {name: kept.get(value.strip("{}"), value) for name, value in wanted["headers"].items()}
    told = {name: value for name, value in answer.headers.items() if name.lower().startswith("adamd-")}
    assert {name.lower() for name in told} == {name.lower() for name in headers if name.startswith("Adamd-")}, says
    assert {name: answer.headers[name] for name in headers} == headers, says
    if "hex" in wanted:
        assert raw.hex() == wanted["hex"], says
    elif "json" in wanted:
        document = json.loads(raw)
        assert {name: document.get(name) for name in wanted["json"]} == wanted["json"], says
    else:
        assert raw == b"", says


def call(url, one):
    """Send serialized messages by gRPC; returns the answer as a vector has it."""
    kind, response = STREAMS.get(one["method"], ("unary_unary", getattr(pb, f"{one['method']}Response")))
    messages = [bytes.fromhex(message) for message in one["messages"]]
    with grpc.insecure_channel(url.removeprefix("grpc://"), options=client_options()) as channel:
        method = getattr(channel, kind)(f"/{SERVICE}/{one['method']}", None, response.FromString)
        try:
            answered = method(iter(messages) if kind == "stream_stream" else messages[0], timeout=30)
            return [_plain(message) for message in (answered if kind.endswith("stream") else [answered])]
        except grpc.RpcError as error:
            info = error_details_pb2.ErrorInfo()
            rpc_status.from_call(error).details[0].Unpack(info)
            problem = json.loads(info.metadata["problem"])
            return {
                "status": error.code().name,
                "reason": info.reason,
                "code": problem["code"],
                "step": problem.get("step"),
            }


def _plain(message):
    told = MessageToDict(message)
    for part in (told.get("standing", {}), told.get("session", {})):
        for name in OTHER_EACH_TIME:
            part.pop(name, None)
    for name in ("parameters", "data"):
        if name in told:
            told[name] = base64.b64decode(told[name]).hex()
    return told
