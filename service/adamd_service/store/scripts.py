"""Loads and runs the Lua scripts. Each declares all its keys and echoes a nonce.

The nonce proves that the answer belongs to this call: a connection that lost its place would hand over another one's.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, cast

import redis
from redis.exceptions import NoScriptError

from adamd.errors import Damaged
from adamd_service.store.connection.connect import Client, pool_of

TRIES: Final = 3  # of a script that is safe to repeat


@dataclass(frozen=True, slots=True)
class Script:
    """One script's text and the SHA-1 that the store knows it by."""

    text: str
    sha: str

    def __call__(self, client: Client, keys: list[str], *args: str | bytes | int) -> list[bytes]:
        """Run it; returns what it says after the nonce.

        Raises:
            redis.RedisError: it did not run, or nobody knows.
            Damaged: it found the head damaged, and changed nothing.

        """
        nonce = secrets.token_hex(8)
        call: list[Any] = [*keys, nonce, *args]
        try:
            answer = cast(Any, client.evalsha(self.sha, len(keys), *call))
        except NoScriptError:  # refused before it ran, so sending it again is safe
            answer = cast(Any, client.eval(self.text, len(keys), *call))
        if not isinstance(answer, list) or not answer or answer[0] != nonce.encode():
            pool_of(client, keys[0]).disconnect(inuse_connections=False)  # every idle connection is suspect
            raise redis.ConnectionError("the store answered another call's answer")
        if answer[1:] == [b"damaged"]:
            raise Damaged(f"{keys[0]} in the store is damaged; {Damaged.ADVICE}")
        return answer[1:]

    def repeatably(self, client: Client, keys: list[str], *args: str | bytes | int) -> list[bytes]:
        """Run a script that may safely run twice, again where the first answer did not come; raises as a call does."""
        for tries_left in reversed(range(TRIES)):
            try:
                return self(client, keys, *args)
            except (redis.ConnectionError, redis.TimeoutError):
                if not tries_left:
                    raise
        raise AssertionError("unreachable")


@cache
def script(name: str) -> Script:
    """Return the script in ``lua/<name>.lua``."""
    text = resources.files("adamd_service.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
