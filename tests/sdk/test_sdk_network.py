"""Networks that fail, as real sockets do: nothing is lost, nothing counts twice, and no answer is believed blindly."""

import json
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peers import Relay, Scripted, answer, end
from safetensors.numpy import save

import adamd
from adamd import errors
from adamd.errors import RetriesExhausted, TransportError
from adamd.sansio.operations import Info
from adamd.transports.cancellation import Cancellation
from adamd.transports.endpoint import route
from adamd.transports.http.pool import HttpTransport
from adamd.transports.progress import meter

QUICK = adamd.Timeout(connect=2, inactivity=2, total=20, first=2)


def port_of(server):
    return urlsplit(server.url).port


@pytest.fixture
def direct(server):
    with adamd.connect(server.url) as client:
        yield client


def gradients(n, size=8):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(size).astype("f4") for _ in range(n)]


def run(session, steps, use_out=False):
    params = None
    for gradient in steps:
        params = session.step(gradient, out=params if use_out else None)
    return params


# -- cuts


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(
        st.tuples(st.none() | st.integers(0, 3000), st.none() | st.integers(0, 3000), st.booleans()), max_size=8
    ),
    use_out=st.booleans(),
    durability=st.sampled_from(["committed", "memory"]),
)
def test_wherever_the_connection_is_cut_every_step_counts_once(direct, server, cuts, use_out, durability):
    steps = gradients(5)
    wanted = run(direct.create(np.zeros(8, "f4"), durability=durability), steps)
    session = direct.create(np.zeros(8, "f4"), durability=durability)
    with (
        Relay(port_of(server), lambda n: cuts[n] if n < len(cuts) else (None, None, False)) as relay,
        adamd.connect(relay.url) as client,
    ):
        through = client.session(session.id)
        params = run(through, steps, use_out)
    assert params.tobytes() == wanted.tobytes()
    assert session.info()["step"] == 5
    session.delete(anyway=True)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 9_000_000), st.integers(0, 9_000_000), st.booleans()), max_size=3))
@example([(9_000_000, 2_000_000, False), (9_000_000, 2_000_000, True), (2_000_000, 9_000_000, True)])
def test_large_bodies_are_cut_too(direct, server, cuts):
    steps = gradients(2, 1_000_000)
    wanted = run(direct.create(np.zeros(1_000_000, "f4"), durability="memory"), steps)
    session = direct.create(np.zeros(1_000_000, "f4"), durability="memory")
    with (
        Relay(port_of(server), lambda n: cuts[n] if n < len(cuts) else (None, None, False)) as relay,
        adamd.connect(relay.url) as client,
    ):
        params = run(client.session(session.id), steps, use_out=True)
    assert params.tobytes() == wanted.tobytes()
    for one in direct.sessions():
        if one["durability"] == "memory":
            direct.session(one["id"]).delete(anyway=True)


@pytest.mark.parametrize("down", [0, 1, 100, 400])
def test_a_creation_whose_answer_is_lost_is_made_once(direct, server, down):
    before = {item["id"] for item in direct.sessions()}
    with (
        Relay(port_of(server), lambda n: (None, down if n < 2 else None, False)) as relay,
        adamd.connect(relay.url) as client,
    ):
        session = client.create(np.ones(3, "f4"), name=f"made-once-{down}")
        assert relay.connections == 3
    assert {item["id"] for item in direct.sessions()} - before == {session.id}
    session = direct.session(session.id)
    assert (session.parameters() == 1).all()
    session.delete(anyway=True)


def test_a_deletion_whose_answer_is_lost_has_happened(direct, server):
    session = direct.create(np.ones(3, "f4"))
    with (
        Relay(port_of(server), lambda n: (None, 5 if n == 1 else None, False)) as relay,
        adamd.connect(relay.url) as client,
    ):
        same = client.session(session.id)
        relay.drop()
        same.delete(anyway=True)
        assert relay.connections == 3
    with pytest.raises(errors.SessionDeleted):
        session.info()


def test_an_export_that_is_cut_is_whole_in_the_end(direct, server, tmp_path):
    session = direct.create(np.arange(300_000, dtype="f4"))
    wanted = session.export()
    with (
        Relay(port_of(server), lambda n: (None, 1_000_000 if n == 0 else None, False)) as relay,
        adamd.connect(relay.url) as client,
    ):
        path = client.session(session.id).export(tmp_path / "state")
        assert relay.connections == 2
    assert path.read_bytes() == wanted


def test_a_dead_kept_connection_is_replaced_without_a_pause(direct, server):
    session = direct.create(np.zeros(3, "f4"))
    no_patience = adamd.Timeout(total=1e9)
    with Relay(port_of(server)) as relay, adamd.connect(relay.url, timeout=no_patience) as client:
        same = client.session(session.id)
        for _ in range(3):
            relay.drop()
            same.step(np.ones(3, "f4"))
        assert relay.connections == 4


def test_a_kept_connection_that_dies_under_a_request_is_replaced_within_one_attempt():
    with Scripted(answer(200, b"{}"), (b"", "close"), answer(200, b"{}"), (b"", "close")) as peer:
        transport = HttpTransport(route(peer.url), QUICK, time.monotonic, meter(False), {})
        deadline = time.monotonic() + 20
        for _ in range(2):
            assert transport.send(Info(), deadline, Cancellation()) == {}
        assert (len(peer.requests), peer.connections) == (3, 2)
        with pytest.raises(TransportError) as caught:  # the fresh one dies too: that is the server's doing
            transport.send(Info(), deadline, Cancellation())
        assert caught.value.extra["phase"] == "silent"
        assert (len(peer.requests), peer.connections) == (5, 3)
        transport.close()


def test_a_server_that_restarts_is_waited_for(server_factory):
    server = server_factory()
    with adamd.connect(server.url) as client:
        session = client.create(np.zeros(4, "f4"))
        session.step(np.ones(4, "f4"))
        server.kill()
        back = threading.Thread(target=server.restart)
        back.start()
        params = session.step(np.ones(4, "f4"))
        back.join()
        assert session.step_number == 2
        assert (session.parameters() == params).all()


def test_a_body_that_the_server_refuses_is_told_though_it_is_still_being_sent(server_factory):
    server = server_factory(env={"ADAMD_MAX_BODY_BYTES": 1_000_000})
    with adamd.connect(server.url, timeout=QUICK) as client:
        for size in (300_000, 30_000_000):
            with pytest.raises(errors.TooLarge, match="1000000"):
                client.create(np.zeros(size, "f4"))
        client.create(np.zeros(10, "f4"))


@pytest.mark.parametrize("size", [240_000, 20_000_000])
@pytest.mark.parametrize("closes", [True, False])
def test_an_early_answer_is_read_and_the_rest_of_the_body_is_spared(closes, size):
    body = json.dumps(errors.TooLarge("a body of too many bytes").problem()).encode()
    said = answer(413, body, "application/problem+json", Connection="close")
    with Scripted((said, "close") if closes else said, read_bodies=False, receive_buffer=4096) as peer:
        with adamd.connect(peer.url, timeout=QUICK) as client, pytest.raises(errors.TooLarge, match="too many"):
            client.create(np.zeros(size, "f4"))
        assert len(peer.requests) == 1


# -- no answer


def test_nobody_there_is_told_soon_with_what_to_do():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with (
        adamd.connect(url, timeout=adamd.Timeout(first=0.3)) as client,
        pytest.raises(RetriesExhausted, match="adamd serve") as caught,
    ):
        client.info()
    assert isinstance(caught.value.extra["last"], TransportError)


def test_a_server_that_hangs_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        limits = adamd.Timeout(inactivity=0.1, total=0.5)
        with adamd.connect(url, timeout=limits) as client, pytest.raises(RetriesExhausted, match="nothing moved"):
            client.info()
        with adamd.connect(url, timeout=limits) as client, pytest.raises(RetriesExhausted):
            client.create(np.zeros(20_000_000, "f4"))


def test_a_server_that_drips_is_given_up_at_the_end_of_the_call():
    with Scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nContent-Type: application/json\r\n\r\n{") as peer:
        stop = threading.Event()

        def drip():
            while not stop.wait(0.02):
                with peer.lock:
                    for sock in peer.open:
                        sock.send(b" ")

        feeder = threading.Thread(target=drip)
        feeder.start()
        try:
            with (
                adamd.connect(peer.url, timeout=adamd.Timeout(inactivity=5, total=0.4)) as client,
                pytest.raises(RetriesExhausted),
            ):
                client.info()
        finally:
            stop.set()
            feeder.join()


def test_busy_is_waited_out_as_the_server_says():
    busy = answer(429, json.dumps(errors.Busy("later").problem()).encode(), "application/problem+json", Retry_After=0)
    with Scripted(busy, answer(503, b"", "text/html"), answer(200, b'{"version": "1"}')) as peer:
        with adamd.connect(peer.url) as client:
            assert client.info() == {"version": "1"}
        assert len(peer.requests) == 3


# -- answers that are not believed

SESSION = {
    "id": "s_1", "name": None, "step": 0, "chain": "a" * 64, "optimizer": {"lr": 0.1}, "dtype": "float32",
    "layout": [{"name": "parameters", "shape": [2]}], "vector": True, "diverged": False,
}  # fmt: skip
MADE = answer(201, json.dumps(SESSION).encode())
GOOD = {"Adamd_Step": 1, "ETag": f'"{"b" * 64}"', "Adamd_Dtype": "float32"}
OCTETS = "application/octet-stream"
PARAMS = np.float32([1, 2]).tobytes()


def stepping(*answers):
    with Scripted(MADE, *answers) as peer, adamd.connect(peer.url, timeout=QUICK) as client:
        session = client.create(np.zeros(2, "f4"))
        stepping.out = np.full(2, 7, "f4")
        try:
            return session.step(np.ones(2, "f4"), out=stepping.out)
        finally:
            stepping.session, stepping.requests = session, peer.requests


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (answer(200, PARAMS, OCTETS, **GOOD | {"Adamd_Step": 2}), "Adamd-Step '2'; wanted 1"),
        (answer(200, PARAMS, OCTETS, **GOOD | {"Adamd_Step": "²"}), "Adamd-Step"),
        (answer(200, PARAMS, OCTETS, **GOOD | {"Adamd_Dtype": "float64"}), "float64 parameters"),
        (answer(200, PARAMS, OCTETS, Adamd_Step=1, Adamd_Dtype="float32"), "no ETag"),
        (answer(200, PARAMS, OCTETS, Adamd_Step=1, ETag=GOOD["ETag"]), "no Adamd-Dtype"),
        (answer(200, PARAMS, OCTETS, **GOOD, Content_Encoding="br"), "compressed body"),
        (answer(200, PARAMS, OCTETS, **GOOD | {"Adamd_Step": "1" * 5000}), "Adamd-Step '1111"),
        (answer(200, PARAMS, OCTETS, **GOOD | {"Adamd_Step": 2**63}), "Adamd-Step"),
        (answer(200, PARAMS, OCTETS + "\x1b[31m", **GOOD), r"octet-stream \[31m, 8 bytes"),
        (answer(200, PARAMS, OCTETS, **GOOD | {"ETag": '"x"'}), "no ETag"),
        (answer(200, PARAMS + b"1234", OCTETS, **GOOD), "12 bytes; wanted application/octet-stream, 8 bytes"),
        (answer(200, PARAMS[:4], OCTETS, **GOOD), "4 bytes"),
        (answer(200, b"<html>log in", "text/html", **GOOD), "text/html"),
        (answer(204, b"", OCTETS, **GOOD), "0 bytes"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk size"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, "head of more than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_that_is_not_the_one_asked_for(said, match):
    with pytest.raises(TransportError, match=match) as caught:
        stepping(said)
    assert type(caught.value) is TransportError
    assert (stepping.session.step_number, stepping.session.chain) == (0, "a" * 64)
    assert len(stepping.requests) == 2
    assert str(caught.value).isprintable()
    assert stepping.out.tolist() == [7, 7]


def test_out_is_what_it_was_where_an_answer_breaks_off_for_good():
    whole = answer(200, PARAMS, OCTETS, **GOOD)
    with Scripted(MADE, (whole[:-3], "close")) as peer:
        with adamd.connect(peer.url, timeout=adamd.Timeout(total=0.5)) as client:
            session = client.create(np.zeros(2, "f4"))
            for call in (lambda out: session.step(np.ones(2, "f4"), out=out), lambda out: session.parameters(out)):
                out = np.full(2, 7, "f4")
                with pytest.raises(RetriesExhausted):
                    call(out)
                assert out.tolist() == [7, 7]
        assert len(peer.requests) > 3


def test_out_is_what_it_was_where_the_answer_is_of_a_lost_history():
    back = answer(200, PARAMS, OCTETS, **GOOD | {"Adamd_Step": 0, "ETag": f'"{"c" * 64}"'})
    with Scripted(MADE, back) as peer, adamd.connect(peer.url, timeout=QUICK) as client:
        session, out = client.create(np.zeros(2, "f4")), np.full(2, 7, "f4")
        with pytest.raises(errors.HistoryLost):
            session.parameters(out)
        assert out.tolist() == [7, 7]


HOSTILE = {
    "retry_after": "soon", "self": 1, "detail": "\x1b]0;owned\x07 two\nlines\u202e", "step": "x" * 9, "kind": None,
    "code": "step_conflict", "id": "\x1b[2J", "__class__": 1, "extra": [], "a b": 2,
}  # fmt: skip


@pytest.mark.parametrize("members", [HOSTILE, HOSTILE | {"step": 10**30}, HOSTILE | {"step": True, "code": ["x"]}])
@pytest.mark.parametrize("code", ["step_conflict", "transport_error", "retries_exhausted", "error", "\x1b"])
def test_a_problem_with_any_members_is_an_error_in_printable_words(members, code):
    document = members | ({} if isinstance(members["code"], list) else {"code": code})
    said = answer(409, json.dumps(document).encode(), "application/problem+json")
    with pytest.raises(errors.AdamdError) as caught:
        stepping(said)
    assert not isinstance(caught.value, TransportError) and len(stepping.requests) == 2
    assert caught.value.step is None and str(caught.value).isprintable()
    assert all(value.isprintable() for value in caught.value.extra.values() if isinstance(value, str))


@pytest.mark.parametrize(
    "said",
    [
        answer(200, PARAMS, OCTETS, **GOOD),
        answer(200, PARAMS, f"{OCTETS}; q=1", **GOOD | {"ETag": f'W/"{"b" * 64}"'}),
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(200, PARAMS, OCTETS, **GOOD),
        answer(200, b"", OCTETS, **GOOD, Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
        + b"3;x=y\r\n" + PARAMS[:3] + b"\r\n5\r\n" + PARAMS[3:] + b"\r\n0\r\nTrailer: x\r\n\r\n",
        (answer(200, b"", OCTETS, **GOOD).replace(b"Content-Length: 0\r\n", b"") + PARAMS, "close"),
        (answer(200, PARAMS, OCTETS, **GOOD).replace(b"HTTP/1.1", b"HTTP/1.0"), "close"),
    ],
    ids=["plain", "weak", "hints", "chunked", "until it closes", "1.0"],
)  # fmt: skip
def test_every_framing_of_an_answer_is_read(said):
    assert stepping(said).tolist() == [1, 2]
    assert (stepping.session.step_number, stepping.session.chain) == (1, "b" * 64)


def test_a_truncated_answer_is_asked_for_again():
    whole = answer(200, PARAMS, OCTETS, **GOOD)
    assert stepping((whole[:-3], "close"), (whole[:20], "close"), whole).tolist() == [1, 2]
    assert len(stepping.requests) == 4
    assert {head.split("\r\n")[0] for head, _ in stepping.requests[1:]} == {"PUT /v1/sessions/s_1/steps/1 HTTP/1.1"}
    assert len({body for _, body in stepping.requests[1:]}) == 1
    assert f'If-Match: "{"a" * 64}"' in stepping.requests[-1][0]


@pytest.mark.parametrize(
    "change",
    [
        {"id": 3},
        {"layout": [{}]},
        {"dtype": "int8"},
        {"step": "0"},
        {"optimizer": []},
        {"id": ""},
        {"id": "../../v1/info"},
        {"id": "s_1\r\nX: y"},
        {"name": "\x1b[2J"},
        {"step": -1},
        {"step": 2**63},
        {"chain": None},
        {"chain": "0" * 63},
        {"chain": "0" * 64 + '"'},
        {"chain": "A" * 64},
        {"vector": ...},
    ],
    ids=str,
)
def test_a_session_that_is_none(change):
    document = {k: v for k, v in (SESSION | change).items() if v is not ...}
    with (
        Scripted(answer(201, json.dumps(document).encode())) as peer,
        adamd.connect(peer.url) as client,
        pytest.raises(TransportError, match="no session"),
    ):
        client.create(np.zeros(2, "f4"))


@pytest.mark.parametrize(
    "change", [{"dtype": "float64"}, {"layout": [{"name": "parameters", "shape": [3]}]}, {"vector": False}], ids=str
)
def test_a_session_that_is_not_the_one_asked_for(change):
    other = answer(201, json.dumps(SESSION | change).encode())
    with Scripted(other) as peer, adamd.connect(peer.url) as client:
        with pytest.raises(TransportError, match="another session"):
            client.create(np.zeros(2, "f4"))
    for wrong in (change, {"id": "s_2"}):
        other = answer(200, json.dumps(SESSION | wrong | {"step": 5}).encode())
        with Scripted(MADE, other) as peer, adamd.connect(peer.url) as client:
            session = client.create(np.zeros(2, "f4"))
            for call in (session.refresh, lambda session=session: session.update(lr=0.2)):
                with pytest.raises(TransportError, match="another session"):
                    call()
            assert (session.id, session.step_number, session.settings) == ("s_1", 0, {"lr": 0.1})


def test_an_answer_after_the_answer_is_never_read_as_the_next_one():
    one = answer(200, b'{"n": 1}')
    with Scripted(one + answer(200, b'{"n": "smuggled"}'), answer(200, b'{"n": 2}')) as peer:
        with adamd.connect(peer.url) as client:
            assert [client.info(), client.info()] == [{"n": 1}, {"n": 2}]
        assert peer.connections == 2


def test_a_state_that_is_none_leaves_no_file(tmp_path):
    for said in (
        answer(200, b"{}", "application/json"),
        answer(200, b"12345678abc", "application/vnd.safetensors"),
        answer(200, b"", "application/vnd.safetensors"),
    ):
        with Scripted(MADE, said) as peer, adamd.connect(peer.url) as client:
            session = client.create(np.zeros(2, "f4"))
            for call in (session.export, lambda session=session: session.export(tmp_path / "x")):
                with pytest.raises(TransportError, match="state"):
                    call()
    assert list(tmp_path.iterdir()) == []


def test_what_a_first_attempt_left_in_a_file_is_gone(tmp_path):
    cut = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.safetensors\r\nContent-Length: 5000\r\n\r\n" + b"x" * 3000
    whole = save({"param:w": np.zeros(2, "f4")})
    with Scripted(MADE, (cut, "close"), answer(200, whole, "application/vnd.safetensors")) as peer:
        with adamd.connect(peer.url) as client:
            path = client.create(np.zeros(2, "f4")).export(tmp_path / "x")
    assert path.read_bytes() == whole


# -- ways there


def test_the_api_key_is_sent_and_kept_out_of_what_is_shown(monkeypatch):
    monkeypatch.setenv("ADAMD_API_KEY", "from-the-environment")
    with Scripted(answer(200, b"{}")) as peer:
        for key, wanted in ((None, "from-the-environment"), ("given", "given")):
            with adamd.connect(peer.url, api_key=key) as client:
                client.info()
                assert f"Authorization: Bearer {wanted}" in peer.requests[-1][0].split("\r\n")
                assert wanted not in repr(client)
        with pytest.raises(errors.InvalidRequest) as caught:
            adamd.connect(peer.url, api_key="two\r\nX-Lines: 1")
        assert "Lines" not in str(caught.value)


def test_a_proxy_gets_the_whole_url(server, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Scripted(answer(200, b'{"by": "proxy"}')) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//user:p%40ss@"))
        with adamd.connect("http://adamd.test:8123/under") as client:
            assert client.info() == {"by": "proxy"}
        head = proxy.requests[0][0].split("\r\n")
        assert head[0] == "GET http://adamd.test:8123/under/v1/info HTTP/1.1"
        assert "Host: adamd.test:8123" in head
        assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in head
        with adamd.connect(server.url) as client:  # a proxy cannot reach this machine's loopback
            assert client.info()["version"] == adamd.__version__
        assert len(proxy.requests) == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not on this machine")
    directory = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=adamd.test"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:adamd.test,IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
        timeout=60,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


def tls(context):
    def wrap(sock):
        try:
            return context.wrap_socket(sock, server_side=True)
        except (ssl.SSLError, OSError):
            end(sock)
            return None

    return wrap


def test_tls_is_trusted_by_ssl_cert_file(server, certificate, monkeypatch):
    cert, context = certificate
    with Relay(port_of(server), wrap=tls(context)) as relay:
        url = relay.url.replace("http:", "https:")
        with (
            adamd.connect(url) as client,
            pytest.raises(TransportError, match="untrusted certificate.*SSL_CERT_FILE") as caught,
        ):
            client.info()
        assert not isinstance(caught.value, RetriesExhausted)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        with adamd.connect(url) as client:
            session = client.create(np.zeros(1_000_000, "f4"), durability="memory")
            params = session.step(np.ones(1_000_000, "f4"))
            assert set(params.tolist()) == {float(params[0])}
            session.delete(anyway=True)


def test_an_early_answer_is_read_through_tls_out_of_a_broken_connection(certificate, monkeypatch):
    """There nothing tells that an answer came but the sending that fails."""
    cert, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    body = json.dumps(errors.TooLarge("a body of too many bytes").problem()).encode()
    said = answer(413, body, "application/problem+json", Connection="close")
    with Scripted((said, "close"), read_bodies=False, receive_buffer=4096, wrap=tls(context)) as peer:
        url = peer.url.replace("http:", "https:")
        with adamd.connect(url, timeout=QUICK) as client, pytest.raises(errors.TooLarge, match="too many"):
            client.create(np.zeros(20_000_000, "f4"))
        assert len(peer.requests) == 1


def test_https_goes_through_a_proxys_tunnel(server_factory, certificate, monkeypatch):
    server = server_factory("--allowed-host", "adamd.test")
    cert, context = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    asked = []

    def tunnel(sock):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        asked.append(head.decode())
        sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return tls(context)(sock)

    with Relay(port_of(server), wrap=tunnel) as relay:
        monkeypatch.setenv("https_proxy", relay.url)
        with adamd.connect("https://adamd.test:8443") as client:
            assert client.info()["version"] == adamd.__version__
    assert asked[0].startswith("CONNECT adamd.test:8443 HTTP/1.")


def test_bars_are_drawn_where_they_are_wanted(server, capsys):
    for progress in (True, False, None):
        with adamd.connect(server.url, progress=progress) as client:
            session = client.create(np.zeros(300_000, "f4"), durability="memory")
            session.step(np.ones(300_000, "f4"))
            session.export()
            session.delete(anyway=True)
        assert ("sending" in capsys.readouterr().err) == (progress is True)


# -- what is told


def test_tls_to_a_plain_port_and_the_other_way_round_are_told_at_once(server):
    url = f"https://127.0.0.1:{port_of(server)}"
    with adamd.connect(url) as client, pytest.raises(TransportError, match="TLS is not spoken.*use http://") as caught:
        client.info()
    assert type(caught.value) is TransportError and caught.value.__cause__ is None
    with Scripted((b"\x15\x03\x01\x00\x02\x02\x46", "close")) as peer, adamd.connect(peer.url) as client:
        with pytest.raises(TransportError, match="TLS is spoken at port.*use https://") as caught:
            client.info()
        assert len(peer.requests) == 1 and type(caught.value) is TransportError
    pytest.importorskip("grpc", reason="an extra of the SDK; CI installs it")
    with adamd.connect(f"grpcs://127.0.0.1:{server.grpc_port}") as client:
        with pytest.raises(TransportError, match="TLS is not spoken there; use grpc://"):
            client.info()


def test_a_key_that_nobody_checks_is_told(server, caplog):
    adamd.connect(server.url).close()
    assert not caplog.records
    adamd.connect(server.url, api_key="adamd_x").close()
    assert "no adamd server checks it" in caplog.text and "adamd_x" not in caplog.text


def test_a_failure_is_a_sentence_without_a_chain_of_others():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with adamd.connect(url, timeout=adamd.Timeout(first=0.1)) as client, pytest.raises(RetriesExhausted) as caught:
        client.info()
    error = caught.value
    assert error.__cause__ is None and error.__suppress_context__
    assert isinstance(error, TimeoutError) and isinstance(error, ConnectionError)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_server_that_hangs_is_told_before_it_is_given_up(server_factory, monkeypatch, caplog, transport):
    monkeypatch.setattr("adamd.transports.silence.PATIENCE", 0.3)
    server = server_factory()
    with adamd.connect(server.grpc_url if transport == "grpc" else server.url) as client:
        session = client.create(np.zeros(10, "f4"), lr=0.1)
        session.step(np.ones(10, "f4"))
        assert not caplog.records

        def resume():
            for _ in range(2000):
                if "no answer" in caplog.text:
                    break
                time.sleep(0.01)
            server.process.send_signal(signal.SIGCONT)

        server.process.send_signal(signal.SIGSTOP)
        helper = threading.Thread(target=resume)
        helper.start()
        session.step(np.ones(10, "f4"))
        helper.join()
        assert session.step_number == 2
        waits, answered = (record.getMessage() for record in caplog.records)
        assert waits.startswith(f"{client.url}: step 2 of session {session.id}: no answer for 0 s; it is waited for")
        assert answered.startswith(f"{client.url}: step 2 of session {session.id}: the server answered, after ")
