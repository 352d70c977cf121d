"""A bulk directory that is lost for good, as its server's user meets it."""

import shutil
import urllib.request

import numpy as np
import pytest

import adamd
from adamd.errors import Damaged
from servers import ENVIRONMENT, gone, launched

LARGE = 200_000  # elements of float32: above what lies in the store


def test_the_sessions_in_a_lost_directory_are_damaged_and_the_others_go_on(server_factory, tmp_path):
    data = tmp_path / "data"
    server = server_factory(data_dir=data)
    with adamd.connect(server.url) as client:
        lost = client.create(np.zeros(LARGE, np.float32), lr=0.1)
        lost.step(np.ones(LARGE, np.float32))
        small = client.create(np.zeros(10, np.float32), lr=0.1)
        small.step(np.ones(10, np.float32))
    server.stop()
    shutil.rmtree(data / "bulk")

    refused = launched(["serve", "--port", "0", "--grpc-port", "off", "--data-dir", str(data)], ENVIRONMENT)
    said = refused.stdout.read()
    refused.stdout.close()
    assert gone(refused, 60) == 1
    assert "Sessions that have vectors there: 1" in said and "--allow-lost-vectors" in said

    server = server_factory("--allow-lost-vectors", data_dir=data)
    with adamd.connect(server.url) as client:
        with pytest.raises(Damaged, match="missing for good"):
            client.session(lost.id).parameters()
        other = client.create(np.zeros(LARGE, np.float32), lr=0.1)
        parameters = other.step(np.ones(LARGE, np.float32))
        request = urllib.request.Request(f"{server.url}/v1/sessions/{lost.id}", method="DELETE")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 204
        assert client.session(small.id).step_number == 1
    server.stop()

    server = server_factory(data_dir=data)  # once is enough
    with adamd.connect(server.url) as client:
        assert client.session(other.id).parameters().tobytes() == parameters.tobytes()
        assert {one["id"] for one in client.sessions()} == {small.id, other.id}
