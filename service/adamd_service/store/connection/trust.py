"""Remembers the processes behind an address, and whether they keep what adamd promises.

A store can be restarted with other settings, set otherwise while it runs, or be another one behind the same name. So it
is looked at when adamd starts, from time to time (`look`), and at every new connection (`greet`): a process that nobody
has looked at yet is never used before it was. While a promise is not kept, nothing that would be promised is committed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from adamd.errors import StoreUnavailable
from adamd_service.store.connection import durability
from adamd_service.store.connection.durability import NodeSettings, Terms
from adamd_service.store.outcomes import Connection, StoreLoading, StoreRefused, Unfit

DEMOTED = "the store at this address is a replica now, which takes no writes; its address is asked again"


class Trust:
    """Shared by all connections to one address. Thread-safe.

    Attributes:
        era: how often the process behind the address was left; a connection of an earlier era is not used again.
        refusal: why nothing may be committed now; None where it may.
        changes: how often a process was seen that was not there before. It may have less history than the one before.

    """

    def __init__(self) -> None:
        self.era = 0
        self.changes = 0
        self.refusal: str | None = None
        self._terms: Terms | None = None
        self._nodes: dict[str, NodeSettings] = {}  # by run_id, which is another one for every start
        self._accepted: frozenset[str] = frozenset()  # run_ids of processes that kept enough when they were looked at
        self._lock = threading.Lock()

    @property
    def promise(self) -> str:
        """What the store promises now, in one line."""
        nodes, terms, refusal = self._nodes, self._terms, self.refusal
        if terms is None or not nodes:
            return "unchecked"
        promise = durability.promise_of(nodes.values(), terms)
        return promise if refusal is None else f"{promise}; nothing is committed now: {refusal}"

    def leave(self, era: int) -> None:
        """Have every connection of an era thrown away before it is used again."""
        with self._lock:
            if era == self.era:
                self.era += 1

    def require(self) -> None:
        """Raise StoreUnavailable where what would be committed now is not kept as promised."""
        if self.refusal is not None:
            raise StoreUnavailable(self.refusal, retry_after=1.0)

    def agree(self, terms: Terms, nodes: Sequence[NodeSettings]) -> None:
        """Remember what the first look found, and what is accepted.

        Raises:
            StoreRefused: it does not keep enough.
            StoreLoading: it is about to.

        """
        self._terms = terms
        self._judge(nodes)
        if self.refusal is not None:
            if any(node.beginning for node in nodes):
                raise StoreLoading(self.refusal)
            raise StoreRefused(self.refusal)

    @property
    def terms(self) -> Terms | None:
        """What is accepted; None before it was agreed on."""
        return self._terms

    def see(self, nodes: Sequence[NodeSettings]) -> None:
        """Take what a later look found.

        Raises:
            StoreUnavailable: the store does not keep enough now.

        """
        assert self._terms is not None
        if not self._terms.cluster and any(node.replica for node in nodes):
            self.leave(self.era)
            raise StoreUnavailable(DEMOTED, retry_after=1.0)
        self._judge(nodes)
        self.require()

    def greet(self, connection: Connection) -> None:
        """Log in over a new connection, and look who is at its other end."""
        connection.on_connect()
        self.connected(connection)

    def connected(self, connection: Connection) -> None:
        """Look who is at the other end of a new connection that is logged in.

        Raises:
            Unfit: it is loading, a replica, or another process than before, which does not keep enough.

        """
        terms = self._terms
        if terms is None:
            return
        try:
            info = durability.info_of(connection)
            earlier = self._nodes.get(info.get("run_id", ""))
            if durability.is_replica(info):
                if terms.cluster:  # asked for the slots alone
                    return
                raise Unfit(DEMOTED)
            if earlier is not None and earlier.run_id in self._accepted and durability.says_the_same(info, earlier):
                return
            node = durability.look(connection)
        except (StoreLoading, StoreRefused) as error:
            raise Unfit(str(error)) from None
        self._judge([*(self._nodes.values() if terms.cluster else ()), node])
        if node.run_id not in self._accepted:
            raise Unfit(self.refusal or "the store is not the one that was looked at")

    def _as_known(self, node: NodeSettings) -> NodeSettings:
        """Return the node, its file counted as complete if it was before: one that began empty has no base either."""
        earlier = self._nodes.get(node.run_id)
        if not node.beginning or earlier is None or not earlier.aof:
            return node
        return replace(node, aof=True, beginning=False)

    def _judge(self, nodes: Sequence[NodeSettings]) -> None:
        terms = self._terms
        assert terms is not None
        with self._lock:
            before = self._nodes.keys()
            self._nodes = {node.run_id: self._as_known(node) for node in nodes}
            self.changes += not self._nodes.keys() <= before
            wrong = {node.run_id: why for node in self._nodes.values() if (why := durability.why_not(node, terms))}
            # One that kept enough and does so no longer is still the one that has the sessions: they can be read.
            self._accepted = frozenset(self._nodes.keys() - wrong.keys()) | (self._accepted & self._nodes.keys())
            self.refusal = next(iter(wrong.values()), None)
