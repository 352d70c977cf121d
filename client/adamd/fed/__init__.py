"""Federated training in rounds: what a coordinator may ask for, and what rounds tell. Pure.

from adamd import fed

run = server.open_federation(
    "digits", initial, strategy=fed.FedAdam(eta=0.05, tau=1e-3), num_rounds=100, cohort=8, min_replies=6, timeout=600,
    aggregate=fed.TrimmedMean(0.2, clip_norm=2.0),
)
for done in run.follow():
    print(done.round, done.metrics, done.closed_by)

The strategies are the server's optimizers, the aggregates how it makes one pseudo-gradient of many, and each has the
name and the defaults of its paper. `adamd.Client.federation` is the clients' side.
"""

from adamd.fed.aggregates import Aggregate, GeometricMedian, Krum, Mean, Median, MultiKrum, TrimmedMean
from adamd.fed.buffering import Buffered, Constant, Hinge, Polynomial, Staleness
from adamd.fed.options import FederationOptions
from adamd.fed.privacy import AdaptiveClip, Privacy
from adamd.fed.records import Answer, Contribution, Evaluation, Failure, Round
from adamd.fed.strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Optimizer, Strategy

__all__ = [
    "AdaptiveClip",
    "Aggregate",
    "Answer",
    "Buffered",
    "Constant",
    "Contribution",
    "Evaluation",
    "Failure",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "FederationOptions",
    "GeometricMedian",
    "Hinge",
    "Krum",
    "Mean",
    "Median",
    "MultiKrum",
    "Optimizer",
    "Polynomial",
    "Privacy",
    "Round",
    "Staleness",
    "Strategy",
    "TrimmedMean",
]
