"""How much a contribution from an earlier round counts.

    s(t) = 1                                       constant
    s(t) = (1 + t)^-exponent                       polynomial
    s(t) = 1 for t <= b,  1 / (a (t - b) + 1)      hinge

t counts the steps made since the contribution's parameters were pulled. Xie et al. 2019, arXiv:1903.03934 (FedAsync),
section 5.2; FedBuff (Nguyen et al. 2022, arXiv:2106.06639) takes the polynomial with exponent 0.5.
"""

from adamd_service.aggregation.settings import HingeStaleness, PolynomialStaleness, Staleness


def staleness_factor(settings: Staleness, staleness: int) -> float:
    """What a contribution of this staleness is multiplied by, in 0…1. Raises ValueError for a staleness below 0."""
    if staleness < 0:
        raise ValueError(f"staleness {staleness}; a contribution cannot be made from a later step")
    match settings:
        case PolynomialStaleness(exponent=exponent):
            return float((1.0 + staleness) ** -exponent)
        case HingeStaleness(a=a, b=b):
            return 1.0 if staleness <= b else 1.0 / (a * (staleness - b) + 1.0)
        case _:
            return 1.0
