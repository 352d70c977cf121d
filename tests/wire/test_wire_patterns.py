"""Groups by patterns of names: exact names first, then the first group that fits; and nothing that takes long."""

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamd.wire.patterns import MOST, GroupsError, check, places
from adamd_service.optim import SettingsError, check_groups, merge_settings, parse_settings, plan, resolve, to_json

NAMES = ["layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias", "head[0]", "head0", "norm.scale"]


def placed(*entries):
    found = places(entries)
    check(entries, found, NAMES)
    return {name: group for name in NAMES if (group := found.of(name)) is not None}


def test_patterns():
    assert placed(["*.bias"]) == {"layer1.bias": 0, "layer2.bias": 0}
    assert placed(["layer?.weight", "norm*"]) == {"layer1.weight": 0, "layer2.weight": 0, "norm.scale": 0}
    assert placed(["*"]) == dict.fromkeys(NAMES, 0)
    assert placed(["*.bias"], ["layer1.*"]) == {"layer1.bias": 0, "layer2.bias": 0, "layer1.weight": 1}  # the first
    assert placed(["*.bias", "layer1.*"], ["layer1.bias"])["layer1.bias"] == 1  # an exact name, though it comes later
    assert placed(["head[?]"]) == {"head[0]": 0}  # brackets are brackets
    assert placed(["head[0]"]) == {"head[0]": 0}
    assert placed() == {}
    assert "LAYER1.BIAS" not in placed(["*.bias"])


@given(st.lists(st.text("ab.*?", max_size=6), max_size=4), st.text("ab.", max_size=8))
def test_as_fnmatch_has_it(entries, name):
    found = places([[entry] for entry in entries])
    fits = [i for i, entry in enumerate(entries) if entry == name] or [
        i for i, entry in enumerate(entries) if fnmatch.fnmatchcase(name, entry) and set(entry) & set("*?")
    ]
    assert found.of(name) == (fits[0] if fits else None)


@pytest.mark.parametrize(
    ("entries", "path", "message"),
    [
        ([["*.biases"]], "groups[0].tensors[0]", "which no tensor matches; the nearest are "),
        ([["zzz*"]], "groups[0].tensors[0]", "wanted one of the layout's 7 tensors"),
        ([["*.bias"], ["layer1.bais"]], "groups[1].tensors[0]", "did you mean 'layer1.bias'?"),
        ([["*.bias"], []], "groups[1].tensors", "is empty"),
        ([["*.bias", "*.bias"]], "groups[0].tensors[1]", "already at groups[0].tensors[0]"),
        ([["head0"], ["head0"]], "groups[1].tensors[0]", "already at groups[0].tensors[0]"),
    ],
)
def test_refused(entries, path, message):
    with pytest.raises(GroupsError) as caught:
        placed(*entries)
    assert caught.value.path == path
    assert message in caught.value.message and len(caught.value.message) < 300


def test_in_settings():
    raw = {"weight_decay": 0.1, "groups": [{"tensors": ["*.bias", "norm.*"], "weight_decay": 0}]}
    parsed = parse_settings(raw)
    check_groups(parsed, NAMES)
    assert to_json(parsed)["groups"] == [{"tensors": ["*.bias", "norm.*"], "weight_decay": 0.0}]  # kept as given
    assert [resolve(parsed, name).weight_decay for name in NAMES] == [0.1, 0.0, 0.1, 0.0, 0.1, 0.1, 0.0]
    wanted = [0.1, 0.0, 0.1, 0.0, 0.1, 0.0]
    updates = plan(parsed, NAMES, [0] * 7, [True] * 7, __import__("numpy").dtype("float64"))
    assert [update.scalars.named["wd"] for update in updates] == wanted  # neighbours with the same are one run
    with pytest.raises(SettingsError) as caught:
        check_groups(merge_settings(parsed, {"groups": [{"tensors": ["bias*"]}]}), NAMES)
    assert caught.value.path == "groups[0].tensors[0]"


def test_hostile_patterns_are_refused_before_they_cost_anything():
    began = time.process_time()
    with pytest.raises(SettingsError, match=f"one pattern more than the {MOST}"):
        parse_settings({"groups": [{"tensors": [f"*{i}" for i in range(100_000)]}]})
    with pytest.raises(SettingsError, match="at most 512 in a pattern"):
        parse_settings({"groups": [{"tensors": ["*" * 513]}]})
    names = [f"{'a' * 500}{i}" for i in range(1000)]
    stars = {"groups": [{"tensors": ["*a" * 255 + "b"]}]}
    with pytest.raises(SettingsError, match="too many patterns, or too long ones, for 1000 tensors"):
        check_groups(parse_settings(stars), names)
    few = {"groups": [{"tensors": ["*a" * 30 + "b"]}]}
    with pytest.raises(SettingsError, match="no tensor matches"):
        check_groups(parse_settings(few), names)
    assert time.process_time() - began < 20  # nothing exponential


def test_one_star_before_a_long_text_is_work_too():
    """At each of a name's characters the whole text is tried: 20 such patterns took two seconds."""
    names = [f"{'a' * 500}{i:03}" for i in range(1000)]
    entries = [[f"*{'a' * 250}b{i}" for i in range(20)]]
    with pytest.raises(GroupsError, match="too many patterns, or too long ones"):
        check(entries, places(entries), names)
    few = [["*bias", "*norm*.weight", "encoder.*.attention.*"]]
    layers = [f"encoder.{i}.attention.{what}" for i in range(4096) for what in ("bias", "norm.weight")]
    check(few, places(few), layers)


def test_a_hint_looks_at_few_of_many_long_names(monkeypatch):
    """difflib compares each character with each: a second for a hundred names of 500 characters that are alike."""
    looked = []

    def counted(word, names, *rest):
        looked.append(len(word) * sum(map(len, names)))
        return []

    monkeypatch.setattr("adamd.wire.patterns.difflib.get_close_matches", counted)
    names = [f"{'a' * 199}{index:04}{'a' * 300}" for index in range(1000)]
    entries = [["*" + "a" * 150 + "b"]]
    with pytest.raises(GroupsError):
        check(entries, places(entries), names)
    assert 0 < looked[0] <= 2_000_000
