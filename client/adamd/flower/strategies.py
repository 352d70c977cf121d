"""Flower's strategies with `Durable` before them: the server at which a session lives makes their rounds."""

from __future__ import annotations

import logging
import math
import secrets
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

try:
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
    from flwr.serverapp import Grid, strategy
    from flwr.serverapp.exception import AggregationError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("adamd.flower needs Flower: pip install 'flwr==1.42.*'", name="flwr") from error

from adamd import fed
from adamd.client import Client, connect
from adamd.errors import InvalidRequest
from adamd.fed import Aggregate, FederationOptions, Strategy
from adamd.flower import records
from adamd.flower.rounds import MirroredRounds, Reply

log = logging.getLogger("flwr")  # Flower's own, where its users look
MOST_REPLIES = 10_000  # of a round; it is closed by hand, when Flower has gathered those that came
Evaluate = Callable[[int, ArrayRecord], "MetricRecord | None"]


class Durable:
    """What a strategy of Flower's gets from adamd; it stands before Flower's class among the bases.

    Args:
        flowers: Flower's own arguments, by place.
        url: the server's; by default ``$ADAMD_URL``, else this machine's port 8000.
        client: one of your own, instead of a URL.
        session: a name (``[A-Za-z0-9._-]``, at most 128). Where there is one of this name, the run goes on with it.
            None makes a new one, whose name the log tells.
        aggregate: how the server makes one of a round's replies; their mean, weighted as Flower does, by default.
        averaged: names or patterns of arrays that are averaged, not stepped. By default a batch norm's running mean
            and variance, which Flower's adaptive strategies step; () does as they do. Integer arrays take the maximum.
        labels: your own words, to find the session in the list.
        named: Flower's own arguments, by name.

    """

    def __init__(
        self,
        *flowers: Any,
        url: str | None = None,
        client: Client | None = None,
        session: str | None = None,
        aggregate: Aggregate | None = None,
        averaged: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        **named: Any,
    ) -> None:
        if client is not None and url is not None:
            raise InvalidRequest("give a client, or the url of a new one, not both")
        super().__init__(*flowers, **named)
        self._client = connect(url) if client is None else client
        self._session = f"flower-{secrets.token_hex(4)}" if session is None else session
        self._aggregate = fed.Mean() if aggregate is None else aggregate
        self._averaged = averaged
        self._labels = labels
        self._rounds: MirroredRounds | None = None

    @abstractmethod
    def _optimizer(self) -> Strategy:
        """Return the server's optimizer, from Flower's own attributes as they are when the run is opened."""

    def summary(self) -> None:
        """Log the strategy's settings, and where its state lives."""
        log.info("\t├──> adamd:")
        log.info("\t│\t├── session %s at %s", self._session, self._client.url)
        log.info("\t│\t└── aggregate: %s", self._aggregate)
        super().summary()  # type: ignore[misc]  # Flower's class stands behind

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Any:
        """Run the rounds, as Flower's ``start`` does, from the first one that the session has not made.

        Args:
            grid: Flower's.
            initial_arrays: the model; a session that is there has its own parameters, of the same names and shapes.
            num_rounds: of the whole run, with those that were made before this start.
            timeout: seconds to wait for replies.
            train_config: as Flower's.
            evaluate_config: as Flower's.
            evaluate_fn: as Flower's; rounds before the last one made are not evaluated again.

        Returns:
            Flower's ``Result``. Of rounds made before this start it has the training metrics that the server recorded:
            means weighted by the number of examples.

        Raises:
            WrongLayout, InvalidSettings: there is a session of this name, for another model or of other settings.
            RetriesExhausted: no server there.

        """
        rounds = self._opened(initial_arrays)
        if rounds.done:
            log.info("adamd: session %s has made %d rounds of %d", self._session, rounds.done, num_rounds)
        return super().start(  # type: ignore[misc]  # Flower's class stands behind
            grid,
            initial_arrays,
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            None if evaluate_fn is None else _from(rounds.done, evaluate_fn),
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a round's messages; none for a round that is made already."""
        rounds = self._opened(arrays)
        if server_round <= rounds.done:
            return []
        handed = rounds.handed(arrays)
        messages: Iterable[Message] = super().configure_train(server_round, handed, config, grid)  # type: ignore[misc]  # Flower's
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Have the server make the round of the replies that came, and return its parameters and their metrics."""
        if self._rounds is None:
            raise AggregationError(reason="configure_train has to be called before aggregate_train")
        if server_round <= self._rounds.done:
            return self._rounds.record, self._rounds.metrics_of(server_round)
        valid, _ = self._check_and_log_replies(replies, is_train=True)  # type: ignore[attr-defined]  # FedAvg's
        if not valid:
            return None, None
        contents = [message.content for message in valid]
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)  # type: ignore[attr-defined]  # FedAvg's
        weighed = [reply for message in valid if (reply := self._reply(message)).num_examples > 0]
        if not weighed:
            raise AggregationError(reason=f"every reply has a weight ({self.weighted_by_key}) of 0")  # type: ignore[attr-defined]  # Flower's
        weakness = self._aggregate.refusal(len(weighed))
        if weakness is not None:
            log.warning("adamd: round %d: %s", server_round, weakness)
        return self._rounds.make(weighed), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a round's evaluation messages. The last round that was made before this start is evaluated again."""
        if self._rounds is not None and server_round < self._rounds.done:
            return []
        messages: Iterable[Message] = super().configure_evaluate(server_round, arrays, config, grid)  # type: ignore[misc]  # Flower's
        return messages

    def _opened(self, arrays: ArrayRecord) -> MirroredRounds:
        """Return the rounds of the session, which the first call finds or makes."""
        if self._rounds is None:
            form = records.form_of(arrays)
            options: FederationOptions = {
                "strategy": self._optimizer(),
                "quorum": MOST_REPLIES,
                "aggregate": self._aggregate,
                "carry": form.counters,
                "dtype": "float64" if form.session == "float64" else "float32",
            }
            if self._averaged is not None:
                options["averaged"] = self._averaged
            if self._labels is not None:
                options["labels"] = self._labels
            run = self._client.open_federation(self._session, records.to_parameters(arrays), **options)
            self._rounds = MirroredRounds(run, form)
        return self._rounds

    def _reply(self, message: Message) -> Reply:
        """Return what a reply holds; Flower has checked that it has one record of each kind."""
        [arrays] = message.content.array_records.values()
        [measured] = message.content.metric_records.values()
        key: str = self.weighted_by_key  # type: ignore[attr-defined]  # FedAvg's
        numbers = {name: float(value) for name, value in measured.items() if not isinstance(value, list)}
        weight = numbers.pop(key)
        told = {name: value for name, value in numbers.items() if math.isfinite(value)}
        return Reply(message.metadata.src_node_id, arrays, weight, told)


def _from(done: int, evaluate: Evaluate) -> Evaluate:
    """Return ``evaluate`` for the rounds from the last one that was made on: before it, None."""

    def evaluate_later(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        return evaluate(number, arrays) if number >= done else None

    return evaluate_later


class DurableFedAdam(Durable, strategy.FedAdam):  # type: ignore[misc]  # flwr is absent where the house's mypy runs
    """Flower's FedAdam, with its arguments and defaults, and its state at a server; `Durable` has the others."""

    def _optimizer(self) -> Strategy:
        return fed.FedAdam(self.eta, self.beta_1, self.beta_2, self.tau, form="flower")


class DurableFedYogi(Durable, strategy.FedYogi):  # type: ignore[misc]  # flwr is absent where the house's mypy runs
    """Flower's FedYogi, with its arguments and defaults, and its state at a server; `Durable` has the others."""

    def _optimizer(self) -> Strategy:
        return fed.FedYogi(self.eta, self.beta_1, self.beta_2, self.tau, form="flower")


class DurableFedAdagrad(Durable, strategy.FedAdagrad):  # type: ignore[misc]  # flwr is absent where mypy runs
    """Flower's FedAdagrad, with its arguments and defaults, and its state at a server; `Durable` has the others."""

    def _optimizer(self) -> Strategy:
        return fed.FedAdagrad(self.eta, self.beta_1, self.tau, form="flower")


class DurableFedAvg(Durable, strategy.FedAvg):  # type: ignore[misc]  # flwr is absent where the house's mypy runs
    """Flower's FedAvg, with its arguments and defaults, and its state at a server; `Durable` has the others."""

    def _optimizer(self) -> Strategy:
        return fed.FedAvg()


class DurableFedAvgM(Durable, strategy.FedAvgM):  # type: ignore[misc]  # flwr is absent where the house's mypy runs
    """Flower's FedAvgM, with its arguments and defaults, and its state at a server; `Durable` has the others."""

    def _optimizer(self) -> Strategy:
        return fed.FedAvgM(self.server_learning_rate, self.server_momentum)
