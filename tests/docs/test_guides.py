"""Every snippet of README.md and of the guides under docs/ runs, as it stands, against a real server."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from servers import ended

ROOT = Path(__file__).parents[2]
GUIDES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "protocol.md")
PAGES = [ROOT / "README.md", *GUIDES]
HTTP, GRPC = "http://127.0.0.1:8000", "grpc://127.0.0.1:50051"
TESTED = []  # words that each stand in one snippet, which a test below runs

CONSOLE = (
    r"git clone <this repository> && cd adamd",
    r"make (?P<target>\w+)(?: +#.*)?",
    r"adamd (?P<command>\w+)",
)


def blocks(text):
    """The language and the text of each code block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


BLOCKS = [block for page in PAGES for block in blocks(page.read_text())]


def snippets(language):
    return [text for kind, text in BLOCKS if kind == language]


def untested(pages, words):
    """The snippets of these texts that no test runs, and the words that are not those of one snippet alone."""
    found = [block for page in pages for block in blocks(page)]
    programs = [text for kind, text in found if kind in ("python", "bash")]
    left = [text for text in programs if sum(word in text for word in words) != 1]
    left += [word for word in words if sum(word in text for text in programs) != 1]
    for text in (text for kind, text in found if kind == "console"):
        left += [line for line in text.splitlines() if not any(re.fullmatch(form, line) for form in CONSOLE)]
    return left + [text for kind, text in found if kind not in ("python", "bash", "console")]


def runs(words):
    """Mark a test as the one that runs the snippet with these words; its fixture `snippet` is that text."""

    def mark(test):
        TESTED.append(words)
        test.words = words
        return test

    return mark


@pytest.fixture
def snippet(request, server):
    (text,) = [text for kind, text in BLOCKS if kind in ("python", "bash") and request.function.words in text]
    return text.replace(HTTP, server.url).replace(GRPC, server.grpc_url)


def run_python(snippet, directory):
    """Run a snippet; return what it prints."""
    run = ended([sys.executable, "-c", snippet], cwd=directory)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_snippet_has_a_test_that_runs_it():
    assert len(GUIDES) >= 9 and len(TESTED) >= 9
    assert untested([page.read_text() for page in PAGES], TESTED) == []


@pytest.mark.parametrize(
    "bad",
    [
        "```python\nprint(1)\n```\n",
        "```bash\ncurl $adamd/run-8\n```\n",
        "```ruby\nputs 1\n```\n",
        "```\nno language\n```\n",
        "```console\nadamd serve --prot 8000\n```\n",
        "```python\nsession.step_async(g)\n```\n",
    ],
)
def test_a_snippet_without_a_test_is_seen(bad):
    assert untested([*(page.read_text() for page in PAGES), bad], TESTED) != []


def test_the_console_blocks_name_what_there_is():
    from adamd_service.__main__ import app

    makefile = (ROOT / "Makefile").read_text()
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    lines = [line for text in snippets("console") for line in text.splitlines()]
    parts = [match.groupdict() for line in lines for form in CONSOLE if (match := re.fullmatch(form, line))]
    targets = {part["target"] for part in parts if "target" in part}
    assert targets >= {"demo", "test"} and {part["command"] for part in parts if "command" in part} <= commands
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_a_guide_says_first_for_whom_it_is(guide):
    title, _, first = guide.read_text().split("\n")[:3]
    assert title.startswith("# ") and first.startswith("For ") and first.endswith(".")


@runs("run-7.safetensors")
def test_curl(snippet, tmp_path):
    assert len([line for line in snippet.splitlines() if line.strip() and not line.startswith("#")]) <= 10
    run = ended(["bash", "-euo", "pipefail", "-c", snippet], cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    session, first, second, parameters = map(json.loads, run.stdout.split("\n")[:4])  # an answer is a line
    assert (session["name"], first["step"], second) == ("run-7", 1, parameters) and second["step"] == 2
    assert (tmp_path / "run-7.safetensors").stat().st_size > 0


@runs('client.open("fit"')
def test_the_sdk(snippet, tmp_path):
    for _ in range(2):  # the second run resumes, and has nothing left to do
        said = run_python(snippet, tmp_path)
        assert said.startswith("300 [")
    first, second = (float(number) for number in re.findall(r"-?\d+\.\d*", said))
    assert abs(first - 3) < 0.01 and abs(second + 2) < 0.01


@runs('open_federation("wards"')
def test_rounds_of_many_clients(snippet, tmp_path):
    """The parameters go half of the way to the targets' mean, 3, in each of eight rounds."""
    *rounds, parameters = run_python(snippet, tmp_path).splitlines()
    assert [line.split()[:2] for line in rounds] == [[str(number), "quorum"] for number in range(1, 9)]
    found = [float(number) for number in re.findall(r"-?\d+\.\d*", parameters)]
    assert np.allclose(found, 3 * (1 - 0.5**8), atol=1e-5)


@runs('optimizer="fedadam"')
def test_federated_averaging(snippet, tmp_path):
    """It ends where the paper's equation does, which this writes again."""
    said = run_python(snippet, tmp_path)
    m, v, weights = 0.0, 1e-6, 0.0
    for _ in range(5):
        mean = np.average([weights + 0.5 * (target - weights) for target in (1.0, -2.0)], weights=[40, 10])
        m, v = 0.9 * m + 0.1 * (mean - weights), 0.99 * v + 0.01 * (mean - weights) ** 2
        weights += 0.1 * m / (v**0.5 + 1e-3)
    found = [float(number) for number in re.findall(r"-?\d+\.\d*", said)]
    assert found == pytest.approx([weights] * 3, rel=0, abs=1e-6) and weights > 0.1


@runs("keep_best")
def test_advice_and_the_best_parameters(snippet, tmp_path):
    reason, best = run_python(snippet, tmp_path).split(maxsplit=1)
    assert reason in ("gradient_norm", "relative_loss")
    first, second = (float(number) for number in re.findall(r"-?\d+\.\d*", best))
    assert abs(first - 3) < 0.1 and abs(second + 2) < 0.1


@runs("adamd.aio")
def test_asyncio_over_grpc(snippet, tmp_path):
    said = run_python(snippet, tmp_path)
    assert [round(float(number), 1) for number in re.findall(r"-?\d+\.\d*", said)] == [0.5, 0.5, -0.5, -0.5]


@runs("step_async")
def test_step_async(snippet, tmp_path):
    assert run_python(snippet, tmp_path).startswith("499500 [-0.09999999")


@runs("ema_decay")
def test_around_the_update(snippet, tmp_path):
    lr, first, _ = (float(number) for number in re.findall(r"-?\d+\.\d*", run_python(snippet, tmp_path)))
    assert round(lr, 9) == 0.01 and first == 0.0  # the first update is the warm-up's 0


@pytest.mark.torch
@runs('session="linear"')
def test_torch(snippet, tmp_path):
    run_python(snippet, tmp_path)


@pytest.mark.torch
@runs('session="resumed"')
def test_torch_resumed(snippet, tmp_path):
    for _ in range(2):  # the second run resumes, and has nothing left to do
        assert run_python(snippet, tmp_path) == "40 [0.0]\n"


@pytest.mark.jax
@runs("adamd.optax")
def test_optax(snippet, tmp_path):
    count, first = run_python(snippet, tmp_path).split(maxsplit=1)
    assert int(count) == 100 and abs(float(first)) < 0.05


def test_the_limits_are_those_of_the_program():
    from adamd_service.settings import ServerSettings

    rows = re.findall(r"^\| (`ADAMD_\w+`.*?) \|", (ROOT / "docs/running-a-server.md").read_text(), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`ADAMD_(\w+)`", row)]
    assert len(names) >= 13
    assert all(name.lower() in ServerSettings.model_fields for name in names)


def test_what_the_pages_install_are_extras():
    extras = (ROOT / "pyproject.toml").read_text()
    named = {extra for page in PAGES for extra in re.findall(r"'(?:adamd|\.)\[(\w+)\]'", page.read_text())}
    assert {"torch", "jax", "grpc", "gpu", "gpu12"} <= named
    assert all(re.search(rf"^{extra} = \[", extras, re.MULTILINE) for extra in named)


def test_ci_is_there():
    assert os.access(ROOT / ".ci" / "run", os.R_OK)
