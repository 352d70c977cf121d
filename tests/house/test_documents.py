"""The documents of the house: sizes, links, the names on the pages, and citations.

README.md and ARCHITECTURE.md are short, links lead somewhere, what the pages name exists, and nothing cites a text that
is not in the tree. Each check is shown to fail on a bad example.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
README = ROOT / "README.md"
GUIDES = sorted(path for path in ROOT.glob("docs/*.md") if path.name != "protocol.md")
DECISIONS = sorted(ROOT.glob("docs/decisions/*.md"))
PAGES = [README, ARCHITECTURE, *GUIDES, *DECISIONS]
BYTES = {README: 9 * 1024, ARCHITECTURE: 14 * 1024}

# A path in these pages is relative to one of them.
BASES = [ROOT, ROOT / "service/adamd_service", ROOT / "client/adamd", ROOT / "docs", ROOT / "docs/decisions"]
LUA = ROOT / "service/adamd_service/store/lua"
FILE = re.compile(r"(?<![\w./-])((?:[\w.-]+/)*[\w-]+\.(?:py|lua|md|toml|yaml|json|h))\b(?:::(\w+))?|`::(\w+)")
FOLDER = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/)`")
CITED = re.compile(r"DESIGN(?:'s)? section|See DESIGN")


def where(path):
    """The file or folder that a page means by `path`, or None."""
    bases = [LUA] if path.endswith(".lua") else BASES
    return next((base / path for base in bases if (base / path).exists()), None)


def missing(text):
    """What `text` names and the tree does not have: files, folders, and `file.py::name` where the file has no such name.

    `::name` alone is a name in the file that was named before it.
    """
    lost = [folder for folder in FOLDER.findall(text) if not (there := where(folder)) or not there.is_dir()]
    last = None
    for path, name, alone in FILE.findall(text):
        name = name or alone
        if path and not alone:
            last = where(path)
        if last is None:
            lost.append(path)
        elif name and not re.search(rf"^\s*(?:(?:async )?def |class )?{name}", last.read_text(), re.MULTILINE):
            lost.append(f"{last.name}::{name}")
    return lost


def drawn(text):
    """The paths of the indented trees that begin with a root folder: each line has names, two spaces, and words."""
    paths, folders = [], []
    for line in text.splitlines():
        if not line.startswith("    "):
            folders = []
            continue
        depth = (len(line) - len(line.lstrip()) - 4) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split()
        if depth == 0 and not (len(names) == 1 and "/" in names[0].rstrip("/")):
            continue
        folders = folders[:depth]
        paths += ["".join(folders) + name for name in names]
        if names[0].endswith("/"):
            folders.append(names[0])
    return paths


def too_long(sizes):
    """The pages with more bytes than their limit."""
    return [page for page, size in sizes.items() if size > BYTES[page]]


def test_readme_and_architecture_are_short():
    assert too_long({page: len(page.read_bytes()) for page in BYTES}) == []


def test_a_page_that_is_too_long_is_seen():
    assert too_long({README: 9_216, ARCHITECTURE: 14_336}) == []
    assert too_long({README: 9_217, ARCHITECTURE: 14_336}) == [README]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_in_the_tree(page):
    assert missing(page.read_text()) == []


@pytest.mark.parametrize(
    "bad",
    [
        "`engine/intake.py`",
        "a body (engine/intake.py) is read",
        "`vanish.lua`",
        "`step.py` of no folder",
        "`engine/motion/`",
        "[x](missing.md)",
        "`engine/step.py::decide_at_random`",
        "`engine/step.py::_apply`, `::decide_at_random`",
    ],
)
def test_a_name_that_is_not_in_the_tree_is_seen(bad):
    assert missing("`engine/step.py` and `commit.lua` in `engine/` are there") == []
    assert len(missing(bad)) == 1


def test_the_house_is_drawn_as_it_stands():
    """Every path of the drawing exists, and every package of the two sides is in it."""
    paths = drawn(ARCHITECTURE.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []
    packages = {
        f"{found.parent.relative_to(ROOT)}/"
        for side in ("client/adamd", "service/adamd_service")
        for found in ROOT.glob(f"{side}/**/__init__.py")
    }
    assert packages - set(paths) == {"client/adamd/wire/v1/"}


def test_a_drawing_with_a_folder_too_many_is_seen():
    paths = drawn(
        "text\n\n    client/adamd/  the SDK\n      aio.py client.py  calls\n      moved/  gone\n        there.py  gone\n"
    )
    assert paths == [
        *("client/adamd/", "client/adamd/aio.py", "client/adamd/client.py"),
        *("client/adamd/moved/", "client/adamd/moved/there.py"),
    ]


def test_every_decision_says_its_problem_and_what_was_decided():
    parts = {"**Problem.**", "**Decision.**"}
    for page in DECISIONS:
        for decision in page.read_text().split("\n## ")[1:]:
            assert parts <= set(re.findall(r"\*\*\w+\.\*\*", decision)), (page.name, decision[:60])


def tracked():
    """The files of the tree; of a copy without git, those that are certainly its own."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    files = [ROOT / name for name in names] or [*ROOT.glob("[a-z]*/**/*.py"), *ROOT.glob("[a-z]*/**/*.md"), *PAGES]
    return [file for file in files if file.exists()]


def anchors(text):
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(page, text):
    """The relative links in the text of a page that lead to no file, or to no heading of it."""
    dead = []
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^()\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            dead.append(link)
    return dead


def test_links_lead_to_files_that_exist():
    pages = [file for file in tracked() if file.suffix == ".md"]
    assert len(pages) > 20 and README in pages
    assert [(page.name, link) for page in pages for link in dead_links(page, page.read_text())] == []


@pytest.mark.parametrize(
    "bad", ["guides.md", "../protocol.md", "protocol.md#8-setings", "#nothing", "../examples/none/"]
)
def test_a_dead_link_is_seen(bad):
    page = ROOT / "docs/pytorch.md"
    alive = "[a](protocol.md#8-settings) [b](../README.md) [c](https://example.org/x) [d](#pytorch) [e](../examples/)\n"
    assert dead_links(page, "# PyTorch\n" + alive) == []
    assert dead_links(page, f"{alive}[f]({bad})\n```python\nx[0](y)\n```\n") == [bad]


def cites(text):
    """The lines of `text` that cite a text which is not in the tree."""
    return [line for line in text.splitlines() if CITED.search(line)]


def test_nothing_cites_a_text_that_is_not_in_the_tree():
    text = [file for file in tracked() if file.suffix in {".py", ".md", ".lua", ".toml", ".proto", ".yaml", ".sh"}]
    assert len(text) > 100
    found = [(file.name, line) for file in text if file != Path(__file__) for line in cites(file.read_text())]
    assert found == []


@pytest.mark.parametrize("bad", ["as in " + "DESIGN section 5", "beside " + "DESIGN's section 3"])
def test_a_citation_is_seen(bad):
    assert cites(f"one\n{bad}\n") == [bad]
    assert cites("section 7 of docs/protocol.md") == []
