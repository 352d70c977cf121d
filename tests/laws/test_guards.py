"""Takes out each guard of a law: the test that watches it must go red.

In a copy of the sources one guard is removed by an exact replacement, and the named test runs on the copy.
"""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from . import guards_bulk, guards_engine, guards_optim, guards_rounds, guards_store, guards_transports
from .warm import Warm

ROOT = Path(__file__).parents[2]
# Each row: law, what is taken out, [(file, what stands there, what is put in its place)], the test that sees it.
AREAS = (guards_bulk, guards_store, guards_engine, guards_rounds, guards_optim, guards_transports)
GUARDS = [row for area in AREAS for row in area.GUARDS]


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A copy of the sources, one for all guards: what Python and pytest compile for the first, the others find."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in ("client", "service", "tests"):
        shutil.copytree(ROOT / folder, copy / folder)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


@pytest.fixture(scope="session")
def warm():
    one = Warm()
    yield one
    one.close()


def put(path, text):
    """Write a source; what was compiled of another text of it goes, for that is told by its second and its size alone."""
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()


@contextlib.contextmanager
def without(tree, edits):
    """The tree with the guard taken out, for so long."""
    whole = {}
    try:
        for name, stands, instead in edits:
            path = tree / name
            text = path.read_text()
            whole.setdefault(path, text)
            assert text.count(stands) == 1, f"{name}: the guard is not where it was: {stands!r}"
            put(path, text.replace(stands, instead))
        yield
    finally:
        for path, text in whole.items():
            put(path, text)
        for left in (".hypothesis", ".import_linter_cache"):  # no guard is found by what another one left
            shutil.rmtree(tree / left, ignore_errors=True)


def check_guard(removed, edits, watcher, tree, warm, *options):
    """Run the watcher on the tree without the guard: it must go red."""
    with without(tree, edits):
        done = watched([watcher], tree, warm, "-x", *options)
    assert done.returncode == 1, f"without {removed!r} {watcher} still passes:\n{done.stdout[-4000:]}"


def check_whole(guards, tree, warm, *options):
    """Run a watcher of each module on the whole tree: what goes red without its guard goes red for that reason alone."""
    one_of_each = {watcher.partition("::")[0]: watcher for _, _, watcher in guards}
    done = watched(one_of_each.values(), tree, warm, *options, within=600)
    assert done.returncode == 0, done.stdout[-4000:]


def watched(watchers, tree, warm, *options, within=120):
    paths = os.pathsep.join(str(tree / folder) for folder in ("client", "service"))
    # CI: pytest explains a red test at length there. A law that took hours to go red would be no law.
    environment = {**os.environ, "PYTHONPATH": paths, "CI": "true"}
    return warm.pytest(
        ["-q", "-m", "", "-p", "no:cacheprovider", *options, *watchers], tree, environment, within=within
    )


@pytest.mark.slow
@pytest.mark.parametrize(("removed", "edits", "watcher"), GUARDS, ids=[guard[0] for guard in GUARDS])
def test_a_guard_that_is_taken_out_is_missed(removed, edits, watcher, tree, warm):
    check_guard(removed, edits, watcher, tree, warm)


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_watchers_are_green_where_nothing_is_taken_out(tree, warm):
    check_whole(GUARDS, tree, warm)
