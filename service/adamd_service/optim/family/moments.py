"""Scalars that the optimizers with Adam's two moments share."""

import math

from adamd_service.optim.recurrence.optimizer import Hyper


def averages(hyper: Hyper) -> dict[str, float]:
    """b1, 1 - b1, b2, 1 - b2: the weights of both moving averages."""
    b1, b2 = hyper.betas
    return {"b1": b1, "one_minus_b1": 1.0 - b1, "b2": b2, "one_minus_b2": 1.0 - b2}


def weight_decay(hyper: Hyper) -> dict[str, float]:
    """wd, added to the gradient, and decay, the parameter's factor; either leaves things alone.

    Sources: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2; torch's `decoupled_weight_decay`.
    """
    if hyper.decoupled_weight_decay:
        return {"wd": 0.0, "decay": 1.0 - hyper.lr * hyper.weight_decay}
    return {"wd": hyper.weight_decay, "decay": 1.0}


def second_moment(hyper: Hyper, t: int) -> tuple[float, float]:
    """(factor of the step, divisor of sqrt(v)) that correct v's bias at update t.

        1, sqrt(1 - b2^t)      eps_form "outside": eps beside the corrected root, as in torch's Adam and in optax
        sqrt(1 - b2^t), 1      eps_form "hat": eps beside sqrt(v) itself, as in Keras and TensorFlow
        1, 1                   without bias correction

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1, and the end of section 2, where eps is epsilon hat.
    """
    if not hyper.bias_correction:
        return 1.0, 1.0
    root = math.sqrt(1.0 - hyper.betas[1] ** t)
    return (root, 1.0) if hyper.eps_form == "hat" else (1.0, root)


def first_moment(hyper: Hyper, t: int) -> float:
    """1 - b1^t, which corrects m's bias at update t; 1 without bias correction."""
    return 1.0 - hyper.betas[0] ** t if hyper.bias_correction else 1.0
