"""How a server chooses its device, what it says when it cannot, and how it survives losing it."""

import json
import os
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import adamd
from adamd_service.device.choose import DeviceRefused, device_of
from adamd_service.device.cupy_runtime import NoDevice
from adamd_service.device.gpu import Gpu
from adamd_service.device.spread import Spread
from adamd_service.optim import Cpu, FusedKernel, State, apply, parse_settings, plan
from optim.parity import differing
from servers import Server, ended

from .host_runtime import HostRuntime

ADAMD = Path(sys.executable).parent / "adamd"
GIB = 1 << 30


def none():
    raise NoDevice("no NVIDIA driver that fits was found")


def two():
    return [HostRuntime(GIB, name="first"), HostRuntime(GIB, name="second")]


def chosen(asked, runtimes, limit=None):
    said = []
    device = device_of(asked, limit, pytest.fail, said.append, runtimes)
    return device, said


def test_auto_without_a_gpu_is_the_cpu():
    device, said = chosen("auto", none)
    assert isinstance(device, Cpu)
    assert device.described == "cpu"
    assert said == []
    assert isinstance(chosen("cpu", pytest.fail)[0], Cpu)  # GPUs are not even looked for


def test_cuda_takes_all_and_cuda_n_takes_one():
    device, _ = chosen("cuda", two)
    assert isinstance(device, Spread)
    assert device.described == "first, second"
    device.close()
    one, _ = chosen("cuda:1", two)
    assert isinstance(one, Gpu)
    assert one.described == "second"
    assert one.residences.limit > GIB // 2
    one.close()


def test_what_does_not_exist_is_refused_with_what_was_found():
    with pytest.raises(DeviceRefused, match=r"--device cuda:2: there is no such GPU; found first, second"):
        chosen("cuda:2", two)
    with pytest.raises(DeviceRefused, match=r"--device cuda: no NVIDIA driver"):
        chosen("cuda", none)


def test_what_is_too_small_is_refused_and_auto_goes_without():
    def small():
        return [HostRuntime(200 << 20, name="old card")]

    with pytest.raises(DeviceRefused, match=r"old card has 209715200 of 209715200 bytes free; wanted 402653184"):
        chosen("cuda", small)
    with pytest.raises(DeviceRefused, match="wanted"):
        chosen("cuda", two, limit=GIB)
    device, said = chosen("auto", small)
    assert isinstance(device, Cpu)
    assert len(said) == 1
    assert "old card" in said[0]
    assert "on the CPU" in said[0]


def test_sessions_are_spread_over_the_gpus_by_their_room():
    made = two()
    device = Spread([Gpu(one, 32 << 20, pytest.fail, slots=1, capacity=1 << 20) for one in made])
    settings, dtype = parse_settings({"name": "adam"}), np.dtype("float32")
    states = [State.fresh(np.zeros(size, dtype), 1, settings) for size in (200_000, 10_000, 10_000, 10_000)]
    wanted = [state.copy() for state in states]
    for state, other in zip(states, wanted, strict=True):
        updates = plan(settings, ["w"], [0], [True], dtype)
        gradient = np.linspace(-1, 1, len(state.params), dtype=dtype)
        with device.ready(state):
            device.apply(state, gradient, updates, [0, len(gradient)], None)
        apply(other, gradient, updates, [0, len(gradient)], None, FusedKernel())
        device.fetch(state)
        assert all(differing(array, other.arrays[name]) == 0 for name, array in state.arrays.items())
    assert [device.gpu_of(state) is device.gpus[0] for state in states] == [True, False, False, False]
    device.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "said"), [("cuda", "--device cuda: "), ("gpu", "--device is 'gpu'; wanted auto, cpu, cuda")]
)
def test_the_command_refuses_a_device_that_is_not_here(asked, said, tmp_path):
    """On a machine without CuPy, or without a driver; a machine with a GPU has make gpu instead."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    told = ended([ADAMD, "serve", "--device", asked, "--port", "0", "--data-dir", tmp_path], env=environment)
    assert told.returncode == 1
    assert said in told.stderr
    if asked == "cuda":
        assert "pip install 'adamd[gpu]'" in told.stderr or "driver" in told.stderr
    assert "Traceback" not in told.stderr


class OnDevices(Server):
    module = "device.serving"


@pytest.fixture
def on_devices(tmp_path):
    made = []

    def start(data_dir="server", *options, **env):
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        made.append(OnDevices(tmp_path / data_dir, *options, env={"PYTHONPATH": path, **env}))
        return made[-1].start()

    yield start
    for one in made:
        one.stop()


def trained(url, name, steps, size=100_000):
    rng = np.random.default_rng(3)
    start = rng.standard_normal(size).astype(np.float32)
    gradients = [rng.standard_normal(size).astype(np.float32) for _ in range(steps)]
    with adamd.connect(url, timeout=adamd.Timeout(total=5.0)) as client:
        session = client.open(name, start, lr=0.01)
        for gradient in gradients[session.step_number :]:
            parameters = session.step(gradient)
        return parameters


@pytest.mark.slow
def test_a_server_tells_its_device_and_gives_the_cpus_bits(on_devices, server):
    gpu = on_devices("two", "--device", "cuda", DEVICES=2)
    assert any("updates run on host 0, host 1" in line for line in gpu.lines)
    with urllib.request.urlopen(f"{gpu.url}/v1/info") as answer:
        assert json.load(answer)["device"] == "host 0, host 1"
    assert any("updates run on cpu" in line for line in server.lines)
    for size in (1, 1000, 3_000_000):
        mine = trained(gpu.url, f"n{size}", 4, size)
        assert mine.tobytes() == trained(server.url, f"device-{size}", 4, size).tobytes()
    assert gpu.stop() == 0


@pytest.mark.slow
def test_a_lost_gpu_ends_the_process_and_the_next_one_goes_on(on_devices, server):
    first = on_devices("lost", "--device", "cuda", LOST_AFTER=3)
    with pytest.raises(adamd.errors.AdamdError):
        trained(first.url, "run", 6)
    assert first.process.wait(30) == 70
    assert any("the GPU is lost" in line and "illegal memory access" in line for line in first.lines)
    again = OnDevices(first.data_dir, "--device", "cpu", env=first.env).start()
    try:
        assert trained(again.url, "run", 6).tobytes() == trained(server.url, "device-never-lost", 6).tobytes()
    finally:
        assert again.stop() == 0
