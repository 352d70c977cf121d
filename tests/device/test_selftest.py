"""`adamd selftest` passes on this CPU and on the CUDA source run on it, and reports a faulty device."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from adamd_service.device.gpu import Gpu
from adamd_service.device.spread import Spread
from adamd_service.optim import FAMILY
from adamd_service.selftest import selftest
from servers import ended

from .host_runtime import HostRuntime

ADAMD = Path(sys.executable).parent / "adamd"


class Wrong(HostRuntime):
    """A device whose compiler did what it should not."""

    def __init__(self, old, new):
        super().__init__(64 << 20, late=False)
        self.old, self.new = old, new

    def load(self, kernel):
        return replace(kernel, source=kernel.source.replace(self.old, self.new))


def verdict(runtime, quick=True):
    said = []
    gpu = Gpu(runtime, 24 << 20, pytest.fail, slots=2, capacity=1 << 20)
    well = selftest(gpu, said.append, quick=quick)
    gpu.close()
    return well, said


def test_the_command_on_this_cpu():
    told = ended([ADAMD, "selftest", "--device", "cpu", "--quick"], env=os.environ, within=200)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "adamw float64: 3,600,108 elements compared, 0 differ" in told.stdout
    assert "log replayed across devices float32" in told.stdout
    assert "Verdict: cpu computes what every other machine computes" in told.stdout


@pytest.mark.parametrize(
    ("asked", "said"), [("tpu", "wanted auto, cpu, cuda, or cuda:N"), ("cuda:7", "--device cuda:7: ")]
)
def test_the_command_refuses(asked, said):
    told = ended([ADAMD, "selftest", "--device", asked], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert told.returncode == 1
    assert said in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.slow
def test_all_of_it_on_two_devices():
    """The whole family, and the measurements (their numbers mean nothing here, their code is run)."""
    said = []
    runtimes = [HostRuntime(96 << 20, late=False, name=f"host {number}") for number in range(2)]
    device = Spread([Gpu(one, 24 << 20, pytest.fail, slots=2, capacity=1 << 20) for one in runtimes])
    assert selftest(device, said.append) is True
    assert sum(line.startswith("ok") for line in said) == 2 * len(FAMILY) + 4
    assert sum("of a copy's" in line and line.startswith("note  Adam on host") for line in said) == 2
    device.close()
    assert [one.used for one in runtimes] == [0, 0]


@pytest.mark.slow
def test_a_right_device_passes():
    well, said = verdict(HostRuntime(64 << 20, late=False))
    assert well is True
    assert not [line for line in said if "FAIL" in line]


WRONG = {
    "division by a reciprocal": (
        "__fdiv_rn(__fsqrt_rn(s_1), row.sqrt_bc2)",
        "__fmul_rn(__fsqrt_rn(s_1), __fdiv_rn(1.0f, row.sqrt_bc2))",
    ),
    "v is not flushed": ("((v_1 < row.tiny) ? row.zero : v_1)", "v_1"),
    "reassociated": (
        "__dmul_rn(row.one_minus_b2, __dmul_rn(g_1, g_1))",
        "__dmul_rn(__dmul_rn(row.one_minus_b2, g_1), g_1)",
    ),
    "divergence is told always": ("if (bad)", "if (true)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_device_is_told(wrong):
    well, said = verdict(Wrong(*WRONG[wrong]))
    assert well is False
    assert any(line.startswith("FAIL") for line in said)
    assert "does NOT compute" in said[-1]
