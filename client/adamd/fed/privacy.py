"""Privacy: differential privacy for whole clients, as settings of rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class AdaptiveClip:
    """A clip norm that follows a quantile of the norms: Andrew et al. 2021, arXiv:1905.03871, algorithm 1.

    Attributes:
        target_quantile: the share of contributions that shall lie within it, from 0 to 1.
        learning_rate: of its geometric update.
        initial: the first round's norm.
        count_noise: standard deviation of the noise on how many lay within; None: a twentieth of the quorum.

    """

    target_quantile: float = 0.5
    learning_rate: float = 0.2
    initial: float = 0.1
    count_noise: float | None = None


@dataclass(frozen=True, slots=True)
class Privacy:
    """Gaussian noise on the sum of clipped contributions: McMahan et al. 2018, arXiv:1710.06963.

    Every client counts alike, and the sum is divided by the quorum, not by how many came. The server, which sees each
    contribution, is trusted; what is protected is what its parameters tell others of one client.

    Attributes:
        noise_multiplier: the noise's standard deviation, in units of the clip norm.
        clip_norm: the largest norm of a contribution, or how it is found.
        delta: of the guarantee, in (0, 1): less than 1 / (number of clients).
        max_epsilon: no round is closed that would spend more; None: no limit.
        population: how many clients there are, where ``sampling`` is "poisson".
        sampling: "poisson": each of the ``population`` takes part in a round by itself, with the same chance. You state
            that; the server does not make it so. It makes epsilon much smaller, wrongly where it is not true.
        seed: of the noise; None: one that is drawn. Who knows it can take the noise away.

    """

    noise_multiplier: float
    clip_norm: float | AdaptiveClip
    delta: float
    max_epsilon: float | None = None
    population: int | None = None
    sampling: Literal["none", "poisson"] = "none"
    seed: int | None = None

    def document(self) -> dict[str, Any]:
        """Return the rounds' ``privacy`` setting, without what is None."""
        document: dict[str, Any] = {
            "noise_multiplier": self.noise_multiplier,
            "delta": self.delta,
            "max_epsilon": self.max_epsilon,
            "population": self.population,
            "sampling": self.sampling,
            "seed": self.seed,
        }
        if isinstance(self.clip_norm, AdaptiveClip):
            clip = self.clip_norm
            document["adaptive"] = _given(
                target_quantile=clip.target_quantile,
                learning_rate=clip.learning_rate,
                initial=clip.initial,
                count_noise=clip.count_noise,
            )
        else:
            document["clip_norm"] = self.clip_norm
        return _given(**document)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
