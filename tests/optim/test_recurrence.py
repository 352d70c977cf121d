"""The text of a recurrence, what specialises it, and where its compiled form is kept."""

import sys
import threading

import numpy as np
import pytest

from adamd_service.optim import FusedKernel, ReferenceKernel, State, apply, parse_settings, plan, warm_up
from adamd_service.optim.family.adam import adam, where
from adamd_service.optim.kernels.numba_kernel import render
from adamd_service.optim.numba_cache import cache_directory, compile_loop
from adamd_service.optim.recurrence.language import TextError, join, signature, specialise
from servers import ended

PLAIN = {"coupled": False, "amsgrad": False}


def test_specialised_to_what_is_used():
    plain = specialise(adam, PLAIN)
    assert (plain.name, plain.arrays, plain.results) == ("adam", ("p", "g", "m", "v"), ("p", "m", "v"))
    assert "wd" not in plain.scalars
    full = specialise(adam, {"coupled": True, "amsgrad": True})
    assert (full.name, full.arrays, full.results) == (
        "adam_amsgrad_coupled",
        ("p", "g", "m", "v", "v_max"),
        ("p", "m", "v", "v_max"),
    )
    assert full.scalars == signature(adam).scalars


def test_rendering_leaves_the_text_as_it_is():
    rule = plan(parse_settings({}), ["w"], [0], [True], np.dtype("float32"))[0].scalars.rule
    assert render(rule, "loop", True, np.dtype("float32")) == render(rule, "loop", True, np.dtype("float32"))


def with_literal(p, g, /, b1, *, coupled):
    p = p * 2
    return (p,)


def with_call(p, g, /, b1, *, coupled):
    p = abs(p)
    return (p,)


def with_power(p, g, /, b1, *, coupled):
    p = p**b1
    return (p,)


def with_branch(p, g, /, b1, *, coupled):
    if b1 > p:
        p = g
    return (p,)


def with_augmented(p, g, /, b1, *, coupled):
    p += g
    return (p,)


def with_chain(p, g, /, b1, *, coupled):
    p = where(p < g < b1, p, g)
    return (p,)


def without_return(p, g, /, b1, *, coupled):
    p = g  # noqa: F841 - a text, read and not run


def with_expression(p, g, /, b1, *, coupled):
    return (p + g,)


@pytest.mark.parametrize(
    "text",
    [with_literal, with_call, with_power, with_branch, with_augmented, with_chain, without_return, with_expression],
)
def test_what_some_kernel_could_not_express_is_refused(text):
    with pytest.raises(TextError):
        specialise(text, {"coupled": True})


def test_choices_are_all_named():
    with pytest.raises(TextError, match="has the choices"):
        specialise(adam, {"coupled": True})


def test_warm_up_tells_its_progress():
    shares = []
    warm_up([np.dtype("float32")], shares.append)
    assert shares == sorted(set(shares)) and len(shares) == 8 and shares[-1] == 1.0


def test_importing_starts_no_compiler():
    code = "import sys, adamd_service.optim; sys.exit('numba' in sys.modules or 'fastapi' in sys.modules or 'asyncio' in sys.modules)"
    assert ended([sys.executable, "-c", code]).returncode == 0


SOURCE = "def twice(x):\n    return x + x\n"


def test_the_cache_is_where_it_was_asked_for(tmp_path, monkeypatch):
    import numba

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert cache_directory() == tmp_path / "adamd"
    assert compile_loop(SOURCE, "twice", (numba.float64,))(2.0) == 4.0
    assert list(tmp_path.rglob("*.nbi"))
    assert [path.read_text() for path in (tmp_path / "adamd").glob("twice_*.py")] == [SOURCE]


def test_a_cache_that_a_module_of_another_name_filled_is_filled_anew(tmp_path, monkeypatch):
    """Its entries name that module, which is gone: they would be tried, and compiled in vain, at every start."""
    import numba

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    with monkeypatch.context() as moved:
        moved.setattr("adamd_service.optim.numba_cache.__name__", "adamd_service.optim.compiled")
        compile_loop(SOURCE, "twice", (numba.float64,))
    assert compile_loop(SOURCE, "twice", (numba.float64,))(2.0) == 4.0
    assert len(list(tmp_path.rglob("*.nbi"))) == 2


def test_a_damaged_cache_is_not_used(tmp_path, monkeypatch):
    import numba

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compile_loop(SOURCE, "twice", (numba.float64,))
    spoilt = [path for kind in ("*.nbi", "*.nbc") for path in tmp_path.rglob(kind)]
    assert spoilt
    for path in spoilt:
        path.write_bytes(b"\x80damaged")
    assert compile_loop(SOURCE, "twice", (numba.float64,))(2.0) == 4.0


def test_without_a_directory_it_compiles_all_the_same(tmp_path, monkeypatch):
    import numba

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert compile_loop(SOURCE, "twice", (numba.float64,))(2.0) == 4.0
    shared = tmp_path / "shared" / "adamd"
    shared.mkdir(parents=True)
    shared.chmod(0o777)  # anyone could put a pickle there
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "shared"))
    assert compile_loop(SOURCE, "twice", (numba.float64,))(2.0) == 4.0
    assert not list(shared.iterdir())


def test_the_users_cache_directory(monkeypatch):
    for variable in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(cache_directory()) == "/home/someone/.cache/adamd/kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(cache_directory()) == "/cache/adamd/kernels"


def test_threads_may_step_sessions_at_once():
    settings = parse_settings({"amsgrad": True})
    rng = np.random.default_rng(0)
    parameters, gradient = rng.standard_normal((2, 50_000)).astype(np.float32)
    states = [State.fresh(parameters, 1, parse_settings({"amsgrad": True})) for _ in range(5)]

    def run(state, kernel):
        for _ in range(5):
            plans = plan(settings, ["w"], state.counts, [True], np.dtype("float32"))
            apply(state, gradient, plans, [0, 50_000], None, kernel)

    threads = [threading.Thread(target=run, args=(state, FusedKernel())) for state in states[1:]]
    for thread in threads:
        thread.start()
    run(states[0], ReferenceKernel())
    for thread in threads:
        thread.join()
    for state in states[1:]:
        assert [a.tobytes() for a in state.arrays.values()] == [a.tobytes() for a in states[0].arrays.values()]


# The loop of AdamW in the first version, before there was a family and a prelude: sessions without extras keep it.
FIRST = """
        g = sign * g
        p = decay * p
        m = b1 * m + one_minus_b1 * g
        v = b2 * v + one_minus_b2 * (g * g)
        m = zero if (-tiny < m) & (m < tiny) else m
        v = zero if v < tiny else v
        s = v
        d = sqrt(s) / sqrt_bc2 + eps
        q = zero if d == zero else m / d
        p = p - step_size * q
        p_array[i] = p
        m_array[i] = m
        v_array[i] = v
        out_array[i] = p
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_session_without_extras_runs_the_first_loop(dtype):
    for raw in ({"name": "adamw"}, {"name": "adam", "eps_form": "hat"}, {"name": "adamw", "bias_correction": False}):
        rule = plan(parse_settings(raw), ["w"], [4], [True], np.dtype(dtype))[0].scalars.rule
        assert FIRST in render(rule, "loop", True, np.dtype(dtype))
        assert rule.arrays == ("m", "v") and rule.watched == ("p", "v")


def takes_a_scalar(g, /, late):
    g = late * g
    return (g,)


def overwrites_it(p, g, /, b1):
    late = b1 * g
    p = p - late
    return (p,)


def test_parts_do_not_overwrite_what_another_reads():
    one, other = specialise(takes_a_scalar, {}), specialise(overwrites_it, {})
    with pytest.raises(TextError, match="late"):
        join([other, one])
    assert join([specialise(adam, PLAIN)]).results == ("p", "m", "v")
