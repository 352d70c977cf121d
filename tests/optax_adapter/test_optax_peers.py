"""optax's own tests of its aliases and of what combines them, with adamd.optax in the place of adam and adamw.

They come with optax's wheel, and are run from there. What cannot be as in optax is listed, with its reason and the words
that it fails with: another failure, or none, is an error here.
"""

import functools
import re
import types
import unittest
from pathlib import Path

import optax
import pytest
from optax._src import alias

import adamd.optax

pytestmark = pytest.mark.jax

HOME = Path(optax.__file__).parent
COMPLEX = "a session is of real numbers; optax.contrib.split_real_and_imaginary wraps it"
AT_THE_SERVER = "the moments are at the server, in the session's dtype"
# test, a pattern of its arguments: why it cannot be, and the words
EXCEPTIONS = {
    ("test_optimization", "complex64"): (COMPLEX, "'parameters' is complex64"),
    ("test_state_shape_dtype_shard_stability", "complex64|complex128"): (COMPLEX, "'parameters' is complex"),
    ("test_explicit_dtype", "adam"): (AT_THE_SERVER, "unexpected keyword argument 'mu_dtype'"),
    ("ExtraArgsTest.test_extra_args", ""): ("its parameters are whole numbers", "'a' is int32"),
    ("wrapped_in_inject_hyperparams", ""): ("each init makes a session: their states have other ids", "Mismatched"),
    ("PartitionTest.test_labels_mismatch", "False, "): ("its update has no params", "needs the parameters"),
}


class Ours:
    """optax's aliases, but adam and adamw are adamd's at this server."""

    url = ""

    def __getattr__(self, name):
        if name not in ("adam", "adamw"):
            return getattr(alias, name)
        return functools.partial(getattr(adamd.optax, name), url=self.url, durability="memory")


OURS = Ours()


def cases(path, *classes):
    """Load a file of optax's tests, on our optimizers only; yield its tests."""
    text = (HOME / path).read_text()
    # A step goes over a socket: where optax's test takes 10,000, optax itself has converged after 1,200.
    text = text.replace("range(10000)", "range(1200)")
    only = '_OPTIMIZERS_UNDER_TEST = tuple(o for o in _OPTIMIZERS_UNDER_TEST if o["opt_name"] in ("adam", "adamw"))'
    text = text.replace("\ndef _get_opt(", f"\n{only}\n\n\ndef _get_opt(")
    module = types.ModuleType(path.replace("/", ".").removesuffix(".py"))
    exec(compile(text, str(HOME / path), "exec"), module.__dict__)
    module.alias = OURS
    for name in classes:
        made = getattr(module, name)
        for test in unittest.defaultTestLoader.getTestCaseNames(made):
            told = re.sub(
                r"<(function|class) '?([\w.]*)[^>]*>", r"\2", getattr(getattr(made, test), "__x_params_repr__", "")
            )
            yield pytest.param(made, test, told, id=f"{Path(path).stem}.{name}.{test}-{told}"[:100])


SHARED = "ExtraArgsTest", "PartitionTest", "NamedChainTest"
TESTS = [
    *cases("_src/alias_test.py", "AliasTest"),
    *cases("_src/combine_test.py", "ComposeTest", *SHARED),
    *cases("transforms/_combining_test.py", "CombiningTest", *SHARED),
]


@pytest.fixture(autouse=True)
def _at(server):
    OURS.url = server.url


def excepted(made, test, told):
    for (name, arguments), why in EXCEPTIONS.items():
        if f"{made.__name__}.{test}".rstrip("0123456789").endswith(name) and re.search(arguments, told):
            return why
    return None


@pytest.mark.parametrize(("made", "test", "told"), TESTS)
def test_optaxs_own(made, test, told):
    result = unittest.TestResult()
    made(test).run(result)
    failed = [text for _, text in result.errors + result.failures]
    why = excepted(made, test, told)
    if why is None:
        assert not failed, failed[0]
    else:
        assert len(failed) == 1 and why[1] in failed[0], (why, failed)
