"""A pytest plugin that runs PyTorch's own test_optim.py with adamd's optimizers in the place of torch's.

torch ships the table of optimizers, their arguments and the errors that they raise (`common_optimizers.optim_db`); the
tests that go through it are in its source, which Debian packages (`.ci/torch-peers` fetches it). Here the table's classes
are replaced, the server is started, and what cannot hold is expected to fail, each with its reason: what then passes
all the same is a failure too.
"""

import os
import re
import sys
import tempfile
import types

import pytest
import torch
from torch.testing._internal import common_optimizers

import adamd.torch
from servers import Server

OURS = {name: getattr(adamd.torch, name) for name in adamd.torch.__all__ if name != "Around"}
# What of the table's and of the tests' is not of adamd's optimizers, by a pattern of its name: why.
EXCEPTIONS = {
    r"test_complex.*": "a session holds no complex numbers; torch.view_as_real is trained instead",
    r"test_deepcopy_copies_all_public_attrs.*": "two optimizers on one session would take each other's steps",
    r"test_fused_error_on_params_on_meta.*": "refused when it is made (WrongLayout: no memory), not by the first step",
    r"test_param_groups_lr_(Adam|AdamW|NAdam|RAdam|Adagrad|RMSprop)_.*": "its groups differ in what a session has once",
    r"test_rosenbrock_sparse_.*_(SGD|Adagrad)_.*": "a session takes sparse gradients of SparseAdam's kind alone",
    r"test_foreach_matches_forloop_NAdam_.*": "mu_product is float32 in torch's state: a rounding, and the test copies parameters",
    r"test_non_empty_state_SGD.*": "SGD without momentum has entries of nothing: so torch's checkpoints take no step",
}


def pytest_configure(config):
    torch.empty = zeroed(torch.empty)
    server = Server(tempfile.mkdtemp(prefix="adamd-peers-"))
    server.start()
    config.add_cleanup(server.stop)
    os.environ["ADAMD_URL"] = server.url
    found = []
    for info in common_optimizers.optim_db:
        ours = OURS.get(info.optim_cls.__name__)
        if ours is not None:
            info.optim_cls = in_memory(ours)
            info.optim_inputs_func = without_differentiable(info.optim_inputs_func)
            info.optim_error_inputs_func = without_warnings(info.optim_error_inputs_func)
            found.append(info)
    common_optimizers.optim_db[:] = found
    every = common_optimizers._get_optim_inputs_including_global_cliquey_kwargs
    common_optimizers._get_optim_inputs_including_global_cliquey_kwargs = without_differentiable(every)
    # What test_optim.py imports to have it run too: torch's schedulers and averages, which are not of optimizers.
    for name, holds in {"test_lrscheduler": "TestLRScheduler", "test_optim": "TestDifferentiableOptimizer"}.items():
        stub(f"optim.{name}", **{holds: object})
    stub("optim.test_swa_utils", TestSWAUtils=object)


def zeroed(empty):
    """Fill what torch.empty returns with zeros: some tests train such memory, which may hold NaN, and adamd refuses NaN."""

    def filled(*given, **named):
        with torch.no_grad():
            return empty(*given, **named).zero_()

    return filled


def without_differentiable(inputs):
    """A step at a server cannot be differentiated through: it is refused, as test_torch_table.py sees."""
    return lambda *given, **named: [one for one in inputs(*given, **named) if not one.kwargs.get("differentiable")]


def without_warnings(inputs):
    """Where torch warns (one parameter twice), a session would keep each element twice: refused, as WrongLayout."""
    return lambda *given, **named: [one for one in inputs(*given, **named) if one.error_type is not UserWarning]


def in_memory(kind):
    """The class, under its own name, with sessions that end with the server."""

    def made(self, *given, **named):
        kind.__init__(self, *given, durability="memory", **named)

    return type(kind.__name__, (kind,), {"__init__": made})


def stub(name, **members):
    sys.modules.setdefault("optim", types.ModuleType("optim"))
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def pytest_collection_modifyitems(items):
    for item in items:
        for pattern, why in EXCEPTIONS.items():
            if re.fullmatch(pattern, item.name):
                item.add_marker(pytest.mark.xfail(reason=why, strict=True))
