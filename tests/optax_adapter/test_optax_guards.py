"""Guards of adamd.optax: each is removed from a copy of the sources, and its test must go red."""

import pytest

from laws.test_guards import check_guard, check_whole, tree, warm  # noqa: F401 - fixtures

pytestmark = [pytest.mark.jax, pytest.mark.slow]
BINDING = "client/adamd/optax/binding.py"
REFUSALS = "tests/optax_adapter/test_optax_refusals.py"

# law, [(file, quoted source, its replacement)], the test that must go red
GUARDS = [
    (
        "a step from another state is refused",
        [
            (
                BINDING,
                "            raise self._position_error(request.count)\n",
                "            self._take(gradients, params, settings, request.loss)\n",
            )
        ],
        "tests/optax_adapter/test_optax_contract.py::test_a_state_ahead_of_its_session_is_told",
    ),
    (
        "parameters that are not the session's are refused",
        [
            (
                BINDING,
                "        if not apart:\n            return\n",
                "        if self.session.step_number:\n            return\n",
            )
        ],
        f"{REFUSALS}::test_parameters_that_something_else_changed",
    ),
    (
        "leaves with other names take the order of init, by their shapes",
        [(BINDING, "            return order.names\n", "            return tuple(sorted(order.names))\n")],
        "tests/optax_adapter/test_optax_flax.py::test_nnx[plain]",
    ),
]


@pytest.mark.parametrize(("removed", "edits", "watcher"), GUARDS, ids=[guard[0] for guard in GUARDS])
def test_a_guard_that_is_taken_out_is_missed(removed, edits, watcher, tree, warm):  # noqa: F811 - the fixtures
    check_guard(removed, edits, watcher, tree, warm, "-m", "jax")


@pytest.mark.timeout(700)
def test_watchers_are_green_where_nothing_is_taken_out(tree, warm):  # noqa: F811 - the fixtures
    check_whole(GUARDS, tree, warm, "-m", "jax")
