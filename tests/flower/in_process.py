"""Flower's grid with its clients in this process; they fail, or are poisoned, where a test says so."""

import numpy as np
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

SIZE = 50
EXAMPLES = {1: 5, 2: 40, 3: 11}  # by node


def as_server_app():
    """Say who the server's task is: Flower's messages are made in its name."""
    TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = 1


def start(dtype):
    return np.random.default_rng(0).standard_normal(SIZE).astype(dtype)


def trained(node, number, parameters):
    """What a client's training makes of the parameters: some steps towards a target of its own, which wanders."""
    rng = np.random.default_rng([node, number])
    target = rng.standard_normal(SIZE) * 10.0 ** rng.integers(-3, 1, SIZE)
    return (parameters + 0.3 * (target - parameters)).astype(parameters.dtype)


class Clients(Grid):
    """Flower's grid with its clients in this process. The strategies call two of its methods; Flower's class asks for all.

    nodes: by id, the weight of each. fails: (node, round) pairs that answer with an error; the same for `nan`, `poisoned`.
    before: called with the number of a round before its clients are asked.
    """

    run = None

    def __init__(self, nodes=EXAMPLES, fails=(), nan=(), poisoned=(), before=lambda number: None):
        self.nodes = nodes
        self.fails, self.nan, self.poisoned = set(fails), set(nan), set(poisoned)
        self.before = before
        self.asked = []  # (kind, round) of each message

    def set_run(self, run):
        raise AssertionError("a strategy does not call this")

    def create_message(self, *args, **kwargs):
        raise AssertionError("a strategy does not call this")

    def push_messages(self, messages):
        raise AssertionError("a strategy does not call this")

    def pull_messages(self, message_ids):
        raise AssertionError("a strategy does not call this")

    def get_node_ids(self):
        return list(self.nodes)

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if messages:
            self.before(messages[0].content.config_records["config"]["server-round"])
        return [self._answer(message) for message in messages]

    def _answer(self, message):
        node, content = message.metadata.dst_node_id, message.content
        number = content.config_records["config"]["server-round"]
        self.asked.append((message.metadata.message_type, number))
        if (node, number) in self.fails:
            return Message(Error(code=1, reason="out of memory"), reply_to=message)
        [parameters] = content.array_records["arrays"].to_numpy_ndarrays()
        measured = MetricRecord({"num-examples": self.nodes[node], "mean": float(parameters.mean())})
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict({"metrics": measured}), reply_to=message)
        array = trained(node, number, parameters)
        if (node, number) in self.nan:
            array[7] = np.nan
        if (node, number) in self.poisoned:
            array = parameters + np.asarray(1e6, parameters.dtype)
        return Message(RecordDict({"arrays": ArrayRecord([array]), "metrics": measured}), reply_to=message)
