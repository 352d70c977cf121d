"""Without JAX, optax and flax there is nothing to collect here; .ci/run makes an environment that has it."""

import uuid
from importlib.util import find_spec

import pytest

if any(find_spec(name) is None for name in ("jax", "optax", "flax")):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Each dtype; float64 exists in JAX only with x64."""
    import jax

    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def client(server):
    import adamd

    with adamd.connect(server.url) as made:
        yield made


@pytest.fixture
def name():
    return f"optax-{uuid.uuid4().hex[:12]}"
