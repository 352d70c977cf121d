"""Guards of adamd.torch: each is removed from a copy of the sources, and its test must go red."""

import pytest

from laws.test_guards import check_guard, check_whole, tree, warm  # noqa: F401 - fixtures

pytestmark = [pytest.mark.torch, pytest.mark.slow]
ROOM = "client/adamd/torch"
SESSIONS = "tests/pytorch/test_torch_sessions.py"
RESUMING = "tests/pytorch/test_torch_resuming.py"
STATE = "tests/pytorch/test_torch_state.py"

# law, [(file, quoted source, its replacement)], the test that must go red
GUARDS = [
    (
        "a model that was written to between steps is refused",
        [(f"{ROOM}/binding.py", "    elif step > 0:\n", "    elif False:\n")],
        f"{SESSIONS}::test_a_model_that_others_have_written_to_is_not_overwritten",
    ),
    (
        "a session that was moved past the model is refused",
        [(f"{ROOM}/binding.py", "        if session.chain != self._model_chain:\n", "        if False:\n")],
        f"{SESSIONS}::test_the_session_moved_by_hand",
    ),
    (
        "parameters in a set are refused",
        [(f"{ROOM}/parameters.py", "    if isinstance(params, set | frozenset | WeakSet):\n", "    if False:\n")],
        f"{RESUMING}::test_a_set_has_no_order[set]",
    ),
    (
        "tensors that changed places are refused",
        [(f"{ROOM}/identity.py", "        if pair is not None:\n", "        if False:\n")],
        f"{RESUMING}::test_values_that_stand_elsewhere_are_refused",
    ),
    (
        "initial_lr is set on resume",
        [
            (
                f"{ROOM}/resuming.py",
                "                group.setdefault(key, parameters.copy_of(value))\n",
                "                pass\n",
            )
        ],
        f"{RESUMING}::test_a_scheduler_that_begins_anew_is_told[ExponentialLR]",
    ),
    (
        "a load that fails changes nothing",
        [
            (
                f"{ROOM}/remote.py",
                "            self._state, self.param_groups, self._binding, self._replaced, self._resumed, "
                "self._continues = before\n",
                "",
            )
        ],
        f"{STATE}::test_a_load_that_fails_changes_nothing",
    ),
    (
        "a loaded state with its names in another order is refused",
        [
            (
                f"{ROOM}/state_dicts.py",
                '        if all(isinstance(key, int) for key in old["params"]):\n',
                "        if False:\n",
            )
        ],
        f"{STATE}::test_names_in_another_order",
    ),
]


@pytest.mark.parametrize(("removed", "edits", "watcher"), GUARDS, ids=[guard[0] for guard in GUARDS])
def test_a_guard_that_is_taken_out_is_missed(removed, edits, watcher, tree, warm):  # noqa: F811 - the fixtures
    check_guard(removed, edits, watcher, tree, warm, "-m", "torch")


@pytest.mark.timeout(700)
def test_watchers_are_green_where_nothing_is_taken_out(tree, warm):  # noqa: F811 - the fixtures
    check_whole(GUARDS, tree, warm, "-m", "torch")
