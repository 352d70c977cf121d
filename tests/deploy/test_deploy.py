"""The image and the composition, checked by linters and against the program, without a container engine."""

import re
import sys
from pathlib import Path

import yaml

from servers import ended

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def test_hadolint_has_nothing_to_say_about_the_dockerfile():
    run = ended([BIN / "hadolint", ROOT / "Dockerfile"])
    assert run.returncode == 0, run.stdout + run.stderr


def test_yamllint_has_nothing_to_say_about_the_composition():
    rules = "{extends: default, rules: {line-length: {max: 120}, document-start: disable, brackets: {max-spaces-inside: 0}}}"
    run = ended([BIN / "yamllint", "--strict", "-d", rules, ROOT / "deploy" / "compose.yaml"])
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_composition_says_what_the_program_knows():
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    told = ended([BIN / "adamd", "serve", "--help"]).stdout
    for option in services["adamd"]["command"]:
        if option.startswith("--"):
            assert option in told
    store = services["store"]["command"]
    assert store[store.index("--appendonly") + 1] == "yes"
    assert store[store.index("--maxmemory-policy") + 1] == "noeviction"


def test_the_image_does_not_run_as_root_and_knows_its_settings():
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    from adamd_service.settings import ServerSettings

    for name in re.findall(r"ADAMD_([A-Z_]+)=", text):
        assert name.lower() in ServerSettings.model_fields
