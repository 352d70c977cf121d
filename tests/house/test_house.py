"""The house itself: sizes, directions of imports, types, style. Each check is shown to fail on a bad example."""

import ast
import sys
from pathlib import Path

import pytest

from servers import ended

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("client/**/*.py"), *ROOT.glob("service/**/*.py")])
MODULE, FUNCTION = 600, 60


def test_no_module_is_longer_than_600_lines():
    assert len(SOURCES) > 20
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > MODULE}
    assert not long


def test_no_function_is_longer_than_60_lines():
    long = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION:
                    long[f"{path.name}:{node.name}"] = lines
    assert not long


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


def test_ruff_and_mypy_are_clean():
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
        run = ended([Path(sys.executable).parent / command[0], *command[1:]], cwd=ROOT, within=200)
        assert run.returncode == 0, run.stdout + run.stderr
