"""FederationOptions: the keyword arguments of `adamd.Client.open_federation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from adamd.fed.aggregates import Aggregate
from adamd.fed.buffering import Buffered
from adamd.fed.privacy import Privacy
from adamd.fed.strategies import Strategy


class FederationOptions(TypedDict, total=False):
    """How a federation trains. All of it is fixed when it is made, but for ``config``.

    Attributes:
        strategy: the server's optimizer; `FedAvg` by default.
        num_rounds: after so many, clients are told to stop; 0, the default: never.
        cohort: how many of the known clients a round asks, drawn anew for each; by default all of them.
        quorum: replies that close a round at once; by default the ``cohort``. One of the two has to be given.
        min_replies: replies that are enough at the ``timeout``; by default the quorum. With fewer a round stays open,
            and is called overdue: nobody's work is thrown away.
        max_replies: replies that a round takes at most: those that come before it is frozen count beside its quorum. By
            default the quorum.
        timeout: seconds from a round's first reply to its end; by default there is none.
        aggregate: how replies become one; `Mean` by default.
        weighting: what a reply counts: "num_examples", or "equal", the only one with ``privacy`` and with aggregates
            that have no weights. By default "num_examples" where that can be.
        max_weight: num_examples above it count as it.
        buffered: no client waits for another: in the place of cohort and quorum.
        privacy: differential privacy for whole clients.
        evaluate: how many clients are asked in each round, from the second one on, to evaluate the parameters that it
            begins with.
        config: an object of yours, that clients find in `Task.config`, as {"epochs": 3}; at most 16 KiB as JSON.
        seed: of the cohorts' drawing; by default one that is drawn, and recorded.
        averaged: names or patterns of tensors that are averaged, not stepped: running statistics. By default those
            named running_mean and running_var, as torch's batch norm has them.
        carry: of those that take the clients' maximum: counters. By default the tensors of whole numbers.
        private: of those that never leave a client, as {"head.*"}: each keeps its own.
        dtype: the session's: "float32" or "float64"; see `adamd.Client.create`.
        durability: "memory" stores nothing; see `adamd.Client.create`.
        labels: your own words, to find it in the list.

    """

    strategy: Strategy
    num_rounds: int
    cohort: int
    quorum: int
    min_replies: int
    max_replies: int
    timeout: float
    aggregate: Aggregate
    weighting: Literal["num_examples", "equal"]
    max_weight: float
    buffered: Buffered
    privacy: Privacy
    evaluate: int
    config: Mapping[str, Any]
    seed: int
    averaged: Sequence[str]
    carry: Sequence[str]
    private: Sequence[str]
    dtype: Literal["float32", "float64"]
    durability: Literal["committed", "memory"]
    labels: Mapping[str, str]
