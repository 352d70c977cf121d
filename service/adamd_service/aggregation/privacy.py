"""Gaussian noise on the sum of clipped contributions, and a clip norm that follows the contributions' own norms.

    out = (sum_i clip(g_i, C) + N(0, (z_v C)^2 I)) / quorum          McMahan et al. 2018, arXiv:1710.06963, section 2
    b   = (sum_i (1[||g_i|| <= C] - 1/2) + N(0, s_b^2)) / quorum + 1/2
    C'  = C exp(-learning_rate (b - target_quantile))               Andrew et al. 2021, arXiv:1905.03871, algorithm 1
    z_v = (z^-2 - (2 s_b)^-2)^(-1/2)                                theorem 1 there; z_v = z where the clip is fixed

So a round as a whole has the noise multiplier z. The divisor is the quorum, not how many came, because the count is
private too.

The noise is a function of a seed and the place: a counter-based generator (Philox: Salmon et al. 2011) gives each slice
a stream of its own, so any thread may make any slice, and a round that is aggregated again after a crash gets the same
noise. Whoever knows the seed can take the noise away. Noise in float64 does not have the full support of the reals;
Mironov 2012 (doi:10.1145/2382196.2382264) tells what its last bits may give away.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from adamd.wire.dtypes import SLICE
from adamd_service.aggregation.kernels.protocol import Doubles
from adamd_service.aggregation.sections import Section
from adamd_service.aggregation.settings import LARGEST, AdaptiveClip, Privacy, count_noise

VECTOR, COUNT = 0, 1  # the streams of one seed: upper words of the generator's counter
SMALLEST: Final = 1e-15  # an adaptive clip norm stays above, and below LARGEST


def noise_seed(seed: int, occasion: str, round_number: int) -> bytes:
    """The seed of one round's noise, 32 bytes, from the session's, below 2^64.

    occasion: another one wherever a round is made of other contributions (after a cancelling, a rewind, a damage): two
    sums with the same noise would have a difference without any.
    """
    return hashlib.sha256(f"adamd noise {seed} {occasion} {round_number}".encode()).digest()


@dataclass(frozen=True, slots=True)
class PrivateMean:
    """Makes a round's private mean of a sum; see `mean.write_sum`.

    seed: of this round alone, 16 bytes or more, of which the first 16 count. stddev: of the noise in each element of
    the sum. quorum: what the sum is divided by.
    """

    seed: bytes
    stddev: float
    quorum: int

    def __call__(self, section: Section, total: Doubles) -> None:
        """Add a slice's noise, and divide."""
        noise = _generator(self.seed, VECTOR, section.start // SLICE).standard_normal(total.size)
        noise *= self.stddev
        total += noise
        total /= self.quorum


def vector_multiplier(privacy: Privacy, quorum: int) -> float:
    """The noise multiplier of the sum: z_v above."""
    if privacy.adaptive is None:
        return privacy.noise_multiplier
    counted = 2 * count_noise(privacy.adaptive, quorum)
    return float((privacy.noise_multiplier**-2 - counted**-2) ** -0.5)


def next_clip_norm(adaptive: AdaptiveClip, clip_norm: float, norms: Sequence[float], quorum: int, seed: bytes) -> float:
    """The clip norm of the round after one with these norms, which were clipped to `clip_norm`: C' above."""
    within = math.fsum((norm <= clip_norm) - 0.5 for norm in norms)
    noise = count_noise(adaptive, quorum) * _generator(seed, COUNT, 0).standard_normal()
    share = (within + noise) / quorum + 0.5
    # An exponent beyond what the limits span leads to a limit anyway.
    exponent = min(100.0, max(-100.0, -adaptive.learning_rate * (share - adaptive.target_quantile)))
    return min(LARGEST, max(SMALLEST, clip_norm * math.exp(exponent)))


def _generator(seed: bytes, stream: int, part: int) -> np.random.Generator:
    """Numbers of one part of a stream: the parts of one seed never meet, for each has 2^128 blocks of the counter."""
    if len(seed) < 16:
        raise ValueError(f"a noise seed of {len(seed)} bytes; wanted 16 or more")
    key = np.frombuffer(seed[:16], "<u8").astype(np.uint64)
    counter = np.array([0, 0, part, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
