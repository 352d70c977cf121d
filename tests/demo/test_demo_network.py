"""What the demo learns with: the gradient is the loss's derivative, the split has nothing in common, the curve fits."""

import numpy as np
import pytest

from adamd.demo import curve, digits


def test_the_gradient_is_the_derivative_of_the_loss():
    learn, _ = digits.load()
    params, batch = digits.start(), np.arange(20)
    _, gradient = digits.loss_and_gradient(params, learn, batch)
    rng = np.random.default_rng(3)
    for name, array in params.items():
        for index in rng.choice(array.size, 5, replace=False):
            place, moved = np.unravel_index(index, array.shape), []
            for by in (1e-6, -2e-6):
                array[place] += by
                moved.append(digits.loss_and_gradient(params, learn, batch)[0])
            array[place] += 1e-6
            assert gradient[name][place] == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-4, abs=1e-8)


def test_the_images_are_all_there_and_none_is_in_both_parts():
    learn, test = digits.load()
    assert (len(learn), len(test)) == (1_437, 360)
    again, _ = digits.load()
    assert learn.pixels.tobytes() == again.pixels.tobytes()
    assert 0.0 <= learn.pixels.min() and learn.pixels.max() == 1.0


def test_bits_are_compared_and_not_values():
    one, other = digits.start(), digits.start()
    assert digits.same_bits(one, other)
    other["output_bias"][3] = -0.0  # equal to 0.0, but other bits
    assert not digits.same_bits(one, other)


@pytest.mark.parametrize("kill", [None, 1, 200, 400])
@pytest.mark.parametrize("losses", [[2.0, 1.0], np.geomspace(2, 0.01, 400).tolist(), [0.5] * 1000])
def test_the_curve_fits_a_terminal(losses, kill):
    told = curve.terminal(losses, kill)
    lines = told.plain.splitlines()
    assert len(lines) == curve.ROWS + 2 and all(len(line) <= 80 for line in lines)
    assert (f"kill -9 at step {kill}" in told.plain) == (kill is not None)


def test_the_picture_is_one(tmp_path):
    path = tmp_path / "curve.png"
    curve.picture(path, [2.0, 1.5, 1.0], 2, "a title")
    raw = path.read_bytes()
    assert raw.startswith(b"\x89PNG") and int.from_bytes(raw[16:20], "big") == 960
