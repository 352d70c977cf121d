"""Every snippet of the README and of the guides in docs/ runs, as it stands, against a real server."""

import json
import re
import sys
from pathlib import Path

import pytest

from servers import ended

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem != "protocol")]
TEXT = "\n".join(path.read_text() for path in GUIDES)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
THERE, GRPC = "http://127.0.0.1:8000", "grpc://127.0.0.1:50051"


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def run_python(holding, server, directory):
    """Run the one snippet that holds these words; return what it prints."""
    (snippet,) = [text for text in blocks("python") if holding in text]
    snippet = snippet.replace(THERE, server.url).replace(GRPC, server.grpc_url)
    run = ended([sys.executable, "-c", snippet], cwd=directory)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_block_is_of_a_kind_that_a_test_runs():
    assert {kind for kind, _ in BLOCKS} == {"console", "bash", "python"}
    assert len(blocks("bash")) == 1 and len(blocks("python")) == 8


def test_the_console_blocks_name_what_there_is():
    targets = (ROOT / "Makefile").read_text()
    said = "\n".join(blocks("console"))
    for target in re.findall(r"^make (\w+)", said, re.MULTILINE):
        assert re.search(rf"^{target}:", targets, re.MULTILINE)
    assert set(re.findall(r"^(adamd \w+)", said, re.MULTILINE)) == {"adamd serve"}


def test_curl(server, tmp_path):
    script = blocks("bash")[0].replace(THERE, server.url)
    assert len([line for line in script.splitlines() if line.strip() and not line.startswith("#")]) <= 10
    run = ended(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    session, first, second, parameters = map(json.loads, run.stdout.split("\n")[:4])  # an answer is a line
    assert (session["name"], first["step"], second) == ("run-7", 1, parameters) and second["step"] == 2
    assert (tmp_path / "run-7.safetensors").stat().st_size > 0


def test_the_sdk(server, tmp_path):
    for _ in range(2):  # the second run resumes, and has nothing left to do
        said = run_python('client.open("fit"', server, tmp_path)
        assert said.startswith("300 [")
    first, second = (float(number) for number in re.findall(r"-?\d+\.\d*", said))
    assert abs(first - 3) < 0.01 and abs(second + 2) < 0.01


def test_advice_and_the_best_parameters(server, tmp_path):
    reason, best = run_python("keep_best", server, tmp_path).split(maxsplit=1)
    assert reason in ("gradient_norm", "relative_loss")
    first, second = (float(number) for number in re.findall(r"-?\d+\.\d*", best))
    assert abs(first - 3) < 0.1 and abs(second + 2) < 0.1


def test_asyncio_over_grpc(server, tmp_path):
    said = run_python("adamd.aio", server, tmp_path)
    assert [round(float(number), 1) for number in re.findall(r"-?\d+\.\d*", said)] == [0.5, 0.5, -0.5, -0.5]


def test_step_async(server, tmp_path):
    assert run_python("step_async", server, tmp_path).startswith("499500 [-0.09999999")


def test_around_the_update(server, tmp_path):
    lr, first, _ = (float(number) for number in re.findall(r"-?\d+\.\d*", run_python("ema_decay", server, tmp_path)))
    assert round(lr, 9) == 0.01 and first == 0.0  # the first update is the warm-up's 0


@pytest.mark.torch
def test_torch(server, tmp_path):
    run_python('session="linear"', server, tmp_path)


@pytest.mark.torch
def test_torch_resumed(server, tmp_path):
    for _ in range(2):  # the second run resumes, and has nothing left to do
        assert run_python('session="resumed"', server, tmp_path) == "40 [0.0]\n"


@pytest.mark.jax
def test_optax(server, tmp_path):
    count, first = run_python("adamd.optax", server, tmp_path).split(maxsplit=1)
    assert int(count) == 100 and abs(float(first)) < 0.05


def test_the_bounds_are_those_of_the_program():
    from adamd_service.settings import ServerSettings

    named = re.findall(r"^\| `ADAMD_(\w+)` \|", TEXT, re.MULTILINE)
    assert len(named) >= 8
    assert all(name.lower() in ServerSettings.model_fields for name in named)


def dead_links(path):
    """Return the relative links of a document that lead nowhere."""
    return [
        target for target in re.findall(r"\]\(([^)#:]+)[)#]", path.read_text()) if not (path.parent / target).exists()
    ]


def test_links_lead_somewhere(tmp_path):
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
    assert len(pages) > 15
    assert {str(page): dead for page in pages if (dead := dead_links(page))} == {}
    (tmp_path / "page.md").write_text("[here](page.md) [there](nothing.md)")
    assert dead_links(tmp_path / "page.md") == ["nothing.md"]
