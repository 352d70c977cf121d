"""Here every kernel is looked at, far more of them than one server compiles."""

import pytest

from adamd_service.optim.kernels import numba_kernel


@pytest.fixture(scope="session", autouse=True)
def no_loop_is_left_to_the_reference():
    """Else the parity tests would, beyond some variants, compare the reference with itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba_kernel, "MOST", 1 << 30)
        yield
