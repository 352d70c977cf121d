"""Without torch there is nothing to collect here; .ci/run makes an environment that has it."""

import uuid
from importlib.util import find_spec

import pytest

if find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order: two equal networks on equal batches have equal gradients."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


@pytest.fixture
def client(server):
    import adamd

    with adamd.connect(server.url) as made:
        yield made


@pytest.fixture
def name():
    return f"torch-{uuid.uuid4().hex[:12]}"
