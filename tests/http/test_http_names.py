"""Names and ids: what a name may be, everywhere that one is taken, and that none can be an id."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import grpc
import numpy as np
import pytest

import adamd
from adamd.errors import InvalidRequest, UnknownSession
from adamd.wire import headers
from adamd.wire.v1 import adamd_pb2 as pb
from adamd_service.codecs import checks

TOOLS = [
    "Fresh-sun-17",
    "lr_0.001",
    "exp_name.v2",
    "slurm-4711_3",
    "A",
    "7",
    "x" * 128,
    "a..b",
    "a.",
    "a-_.",
    "s",
    "m",
    "S_1",
]
TOOLS += [
    "M_1",
    "s-1",
    "s.1",
    "sm_1",
    "ss_1",
    "m1_2",
    "snapshot",
    "steps",
    "parameters",
    "None",
    "null",
    "0",
    "1e5",
    "Ubuntu_22.04",
]
NONE = [
    "s_",
    "m_",
    "s_1",
    "m_1",
    "s_run",
    "m_run.7",
    "s__",
    "s_0123456789abcdef0123",
    "m_0a1b2c3d4e5f_0123456789abcdef0123",
]
NONE += [
    "",
    "x" * 129,
    "_a",
    ".a",
    "-a",
    "..",
    ".",
    "ümlaut",
    "a b",
    "a/b",
    "a\n",
    "a\x00",
    "a%41",
    "a~",
    "a:b",
    "a,b",
    "a{b}",
    "٣",
]


def test_what_begins_as_an_id_is_no_name_whatever_follows():
    name, an_id, ref = (re.compile(p) for p in (headers.NAME_PATTERN, headers.ID_PATTERN, headers.REF_PATTERN))
    plain = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
    told = 0
    for length in range(5):
        for parts in itertools.product("smSMa09_.-", repeat=length):
            text = "".join(parts)
            begins_so = text.startswith(("s_", "m_"))
            assert bool(name.fullmatch(text)) == (bool(plain.fullmatch(text)) and not begins_so), text
            assert not (name.fullmatch(text) and an_id.fullmatch(text)), text
            if begins_so:
                assert ref.fullmatch(text) is None or an_id.fullmatch(text), text
            told += 1
    assert told > 11_000
    for one in (*TOOLS, "s" * 128, "mm" + "_" * 126):
        assert name.fullmatch(one) and ref.fullmatch(one), one
    for one in NONE:
        assert not name.fullmatch(one), one


def test_the_ids_that_are_made_are_ids(talk):
    for kind in ("committed", "memory"):
        made = talk.create([1.0], durability=kind)["id"]
        assert re.fullmatch(headers.ID_PATTERN, made) and not re.fullmatch(headers.NAME_PATTERN, made)
        told = talk("POST", "/v1/sessions", {"name": made, "parameters": [1]}).problem(422, "invalid_request")
        assert told["path"] == "name" and "not s_… or m_…, as ids are" in told["detail"]


def test_names_of_earlier_versions_still_lead_to_their_sessions():
    for former in ("-", "-a", "--", "a-b", "9", "x" * 63, "-" + "x" * 62):
        assert checks.session_ref(former) == former
    for none in ("-A", "-a_b", "-" + "x" * 63):
        with pytest.raises(UnknownSession):
            checks.session_ref(none)


@pytest.mark.parametrize("durability", ["committed", "memory"])
@pytest.mark.parametrize("called", TOOLS)
def test_a_name_stands_wherever_an_id_does(talk, called, durability):
    made = talk.create([1.0, 2.0], name=called, durability=durability)
    assert made["name"] == called
    every = "".join(f"%{byte:02X}" for byte in called.encode())  # nothing in a path needs this, and it is allowed
    for path in (called, every, quote(called[:1]) + called[1:]):
        here = f"/v1/sessions/{path}"
        assert talk("GET", here).good().json["id"] == made["id"]
        talk("PATCH", here, {"labels": {"a": "b"}}).good()
        talk("GET", f"{here}/parameters").good()
        state = talk("GET", f"{here}/state").good()
        assert state.headers["Content-Disposition"] == f'attachment; filename="{called}-{state.step}.safetensors"'
        talk("PUT", f"{here}/steps/{state.step + 1}", {"gradient": [1, 1]}).good()
        talk("POST", f"{here}/steps", {"gradient": [1, 1]}, {"Idempotency-Key": path[:200]}).good()
    taken = talk("POST", "/v1/sessions", {"name": called, "parameters": [1]}).problem(409, "session_exists")
    assert taken["id"] == made["id"]
    other = called.swapcase()
    if other != called:  # upper and lower case are two names
        talk("GET", f"/v1/sessions/{other}").problem(404, "unknown_session")
    talk("DELETE", f"/v1/sessions/{called}").good(204)
    if durability == "committed":
        talk("GET", f"/v1/sessions/{called}").problem(410, "session_deleted")
    again = talk.create([1.0], name=called, durability=durability)["id"]
    assert talk("GET", f"/v1/sessions/{called}").json["id"] == again
    talk("DELETE", f"/v1/sessions/{called}").good(204)


@pytest.mark.parametrize("called", NONE)
def test_what_is_no_name_makes_no_session(talk, server, called):
    told = talk("POST", "/v1/sessions", {"name": called, "parameters": [1]}).problem(422, "invalid_request")
    assert told["path"] == "name" and headers.NAME_WORDS in told["detail"]
    if called:  # in gRPC an empty one is none at all
        with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
            create = channel.unary_unary(
                "/adamd.v1.OptimizerService/CreateSession", pb.CreateSessionRequest.SerializeToString, bytes
            )
            layout = pb.Layout(tensors=[pb.Tensor(name="a", shape=[1])])
            with pytest.raises(grpc.RpcError, match="as ids are"):
                create(pb.CreateSessionRequest(name=called, layout=layout, dtype=pb.DTYPE_FLOAT32), timeout=60)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_sdk_and_the_command_take_the_same_names(server, transport):
    address = server.url if transport == "http" else server.grpc_url
    with adamd.connect(address) as client:
        for called in ("Fresh-sun_17.b", "x" * 128, "S_1"):
            session = client.open(called, np.zeros(2), lr=0.1)
            session.step(np.ones(2))
            assert client.open(called, np.zeros(2), lr=0.1).step_number == 1
            assert client.session(called).id == session.id
            seen = next(iter(client.watch(called)))
            assert seen["step"] == 1
            if transport == "http":
                command = [Path(sys.executable).parent / "adamd", "sessions", "--url", server.url]
                shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
                assert called in shown
            session.delete(anyway=True)
        for called in ("s_run", "m_run", "-run", "a b", "x" * 129):
            with pytest.raises(InvalidRequest, match="as ids are"):
                client.open(called, np.zeros(2), lr=0.1)
