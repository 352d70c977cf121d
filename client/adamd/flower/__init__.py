"""Flower's strategies whose state lives at a server: the ServerApp may die, and goes on where it was.

from adamd.flower import FedAdam                       # in the place of flwr.serverapp.strategy

strategy = FedAdam(eta=0.05, session="digits")         # the server at $ADAMD_URL
result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=100)

`FedAvg`, `FedAvgM`, `FedAdagrad` and `FedYogi` are here too. They are Flower's own classes, with their arguments,
defaults and hooks; sampling, messages and metrics are Flower's. What makes a round's replies into the next parameters
is adamd's server: each reply is a contribution of the client that is named by its node id, and is durable before the
next one is sent. So three things are different:

- ``start(…, num_rounds=100)`` begun again goes on behind the last round that was made, with its moments: ``num_rounds``
  is the whole run's. Of a round that was not made, the clients are asked anew. Rounds that had been made are passed
  without a message: a ``configure_train`` of your own still sees their numbers, so what it decays is where it was.
- ``aggregate`` is any of `adamd.fed`: the clients' mean by default, or what withstands some bad clients.
- The server has the parameters. Who changes the arrays between two rounds is told so by an error.

Without ``session`` a run has a new session, whose name the log tells: it survives the server's death, and the
ServerApp's where that is given the name.
"""

from adamd.flower.strategies import (
    DurableFedAdagrad as FedAdagrad,
)
from adamd.flower.strategies import (
    DurableFedAdam as FedAdam,
)
from adamd.flower.strategies import (
    DurableFedAvg as FedAvg,
)
from adamd.flower.strategies import (
    DurableFedAvgM as FedAvgM,
)
from adamd.flower.strategies import (
    DurableFedYogi as FedYogi,
)

__all__ = ["FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedYogi"]
