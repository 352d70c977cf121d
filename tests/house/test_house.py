"""The house itself: sizes, directions of imports, types, style. Each check is shown to fail on a bad example."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

from servers import ended

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("client/**/*.py"), *ROOT.glob("service/**/*.py")])
EVERY = [*SOURCES, *(path for room in ("bench", "tests", "examples") for path in ROOT.glob(f"{room}/**/*.py"))]
GENERATED = "_pb2"
MODULES, LINES, FUNCTION, WORDS = 15, 600, 60, 20


def full_folders(paths):
    """Folders with more than 15 modules, beside their __init__."""
    counts = Counter(str(path.parent) for path in paths if path.stem != "__init__")
    return {folder: count for folder, count in counts.items() if count > MODULES}


def long_modules(sources):
    return {name: count for name, text in sources.items() if (count := len(text.splitlines())) > LINES}


def long_functions(sources):
    return [
        f"{name}:{node.name}"
        for name, text in sources.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION
    ]


def long_first_sentences(sources):
    """Modules whose docstring is absent, or begins with a paragraph of more than 20 words."""
    long = []
    for name, text in sources.items():
        tree = ast.parse(text)
        first = (ast.get_docstring(tree) or "").split("\n\n")[0].split()
        if tree.body and not 0 < len(first) <= WORDS:
            long.append(name)
    return long


def classes_of_one_name(sources):
    """Names of classes that two modules define."""
    names = [node.name for text in sources.values() for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return sorted(name for name, count in Counter(names).items() if count > 1)


def texts(paths):
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths if GENERATED not in path.name}


def test_sizes_are_within_the_limits():
    assert len(SOURCES) > 200
    assert not full_folders(SOURCES)
    assert not long_modules(texts(SOURCES))
    assert not long_functions(texts(SOURCES))


def test_modules_begin_with_a_short_sentence():
    assert len(EVERY) > 400
    assert not long_first_sentences(texts(EVERY))


@pytest.mark.parametrize("side", ["service", "client"])
def test_no_two_classes_have_one_name(side):
    assert not classes_of_one_name(texts(ROOT.glob(f"{side}/**/*.py")))


BODY = "    pass\n"


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (full_folders, [Path(f"room/m{n}.py") for n in range(15)], [Path(f"room/m{n}.py") for n in range(16)]),
        (long_modules, {"a": "x = 1\n" * 600}, {"a": "x = 1\n" * 601}),
        (long_functions, {"a": "def f():\n" + BODY * 59}, {"a": "def f():\n" + BODY * 60}),
        (long_first_sentences, {"a": f'"""{"word " * 20}"""'}, {"a": f'"""{"word " * 21}"""'}),
        (long_first_sentences, {"a": ""}, {"a": "x = 1"}),
        (classes_of_one_name, {"a": "class A: ...", "b": "class B: ..."}, {"a": "class A: ...", "b": "class A: ..."}),
    ],
)
def test_a_limit_that_is_passed_is_seen(check, good, bad):
    assert not check(good)
    assert check(bad)


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "misc"])
def test_no_room_has_a_name_that_says_nothing(word):
    assert not [path for path in SOURCES if path.stem == word]


def test_the_core_imports_no_io():
    """Law 8, by running it: importing the pure modules brings in no transport and no store."""
    pure = "adamd_service.optim, adamd_service.rules, adamd_service.records, adamd.wire.safetensors"
    said = ended([sys.executable, "-c", f"import {pure}, sys; print(*sys.modules)"]).stdout.split()
    assert "adamd_service.optim" in said
    assert not {"fastapi", "starlette", "uvicorn", "redis", "grpc"} & set(said)


def test_the_sdk_is_light():
    said = ended([sys.executable, "-c", "import adamd, sys; print(*sys.modules)"]).stdout.split()
    assert "adamd" in said
    assert not {"adamd_service", "fastapi", "pydantic", "redis", "numba", "torch"} & set(said)


def test_imports_run_one_way():
    """The contracts stand in pyproject.toml; they cover every package."""
    run = ended([Path(sys.executable).parent / "lint-imports"], cwd=ROOT)
    assert run.returncode == 0, run.stdout


def clean(*command):
    run = ended([Path(sys.executable).parent / command[0], *command[1:]], cwd=ROOT, within=200)
    assert run.returncode == 0, run.stdout + run.stderr


def test_ruff_is_clean():
    clean("ruff", "check", ".")
    clean("ruff", "format", "--check", ".")


@pytest.mark.slow  # without a cache, as in a new clone, a minute of a processor; make check runs it too
def test_mypy_is_clean():
    clean("mypy")
