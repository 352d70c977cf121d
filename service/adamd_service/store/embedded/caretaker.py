"""Looks after the private store while it runs: checks its disk, and has its file rewritten when it is due."""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from adamd_service.store.connection.failures import NO_ROOM
from adamd_service.store.embedded.disk_room import DiskRoom

LOOK_SECONDS: Final = 1.0  # between two looks
ANSWER_SECONDS: Final = 5.0  # that an answer may take
RETRY_SECONDS: Final = 30.0  # after a rewrite that failed or did not help
REWRITE_GROWTH: Final = 5  # the file is rewritten once it has this many times the bytes of the last rewrite,
REWRITE_BYTES: Final = 2**30  # and at least this many
SHORT_WRITE: Final = re.compile(r"Short write while writing to the AOF file")  # the first sign of a full disk
log = structlog.get_logger()


class Caretaker:
    """Tends one store. `tend` is called by one thread; `ended` by the one that starts the store again."""

    def __init__(self, url: str, data: Path, room: DiskRoom) -> None:
        self.room = room
        self.trouble: str | None = None  # what the store ended with, until it answers again
        self._data = data
        self._client = redis.Redis.from_url(url, socket_timeout=ANSWER_SECONDS, retry=Retry(NoBackoff(), 0), protocol=2)
        self._size = 0  # bytes of the file
        self._needed = 0  # and of what a rewrite of it would still write
        self._stuck = -RETRY_SECONDS  # when the store could not write
        self._asked = -RETRY_SECONDS  # when a rewrite was begun
        self._rewriting = self._failed = False

    def run(self, stopping: threading.Event) -> None:
        """Tend the store until it is stopped."""
        while not stopping.wait(LOOK_SECONDS):
            try:
                self.tend()
            except redis.RedisError:  # it is being started, or stands still: who asks it is told
                with suppress(OSError):
                    self.room.look(self._needed)
            except Exception as error:  # another look may go better
                log.exception("looking after the store failed", exc_info=error)
        self._client.close()

    def tend(self) -> None:
        """Look once."""
        about: dict[str, Any] = self._client.info("memory") | self._client.info("persistence")
        if about.get("loading"):
            return
        self.trouble = None
        self._size = int(about["aof_current_size"])
        rewriting = bool(about["aof_rewrite_in_progress"] or about["aof_rewrite_scheduled"])
        self._needed = max(0, int(about["used_memory_dataset"]) - (self._written() if rewriting else 0))
        if self.room.unable and time.monotonic() - self._stuck > RETRY_SECONDS:
            self.room.unable = ""  # there may be room meanwhile: the next write tells
        if self._rewriting and not rewriting:
            self._rewritten(str(about["aof_last_bgrewrite_status"]))
        self._rewriting = rewriting
        self.room.look(self._needed)
        if not rewriting and self._due(int(about["aof_base_size"])) and self.room.fits_a_rewrite():
            self._asked = time.monotonic()
            self._client.bgrewriteaof()
            self._rewriting = True

    def _due(self, base: int) -> bool:
        if time.monotonic() - self._asked < RETRY_SECONDS and (self.room.unable or self._failed):
            return False
        if self._size >= max(REWRITE_BYTES, REWRITE_GROWTH * base) or self.room.unable:
            return True
        gained, least = self._size - self._needed, self._size // 4
        if self.room.full:  # whatever else fills the disk, this much the store can give back to itself
            return gained > least and time.monotonic() - self._asked >= RETRY_SECONDS
        return gained > max(self.room.available, self.room.margin, least)

    def _rewritten(self, status: str) -> None:
        self._failed = status != "ok"
        if self._failed:
            log.error("rewriting the store's file failed; its log says why", log=str(self._data / "valkey.log"))
        elif self.room.unable:
            self.room.unable = ""  # it has begun a new file

    def _written(self) -> int:
        """Return how much of a rewrite is on the disk already."""
        with suppress(OSError):
            return sum(path.stat().st_size for path in self._data.glob("temp-*.aof"))
        return 0

    def ended(self, status: int, log_tail: str) -> None:
        """Note that the store ended by itself, and what its log says last."""
        last = log_tail.splitlines()[-1] if log_tail else "(no log)"
        self.trouble = f"the private store ended with status {status} and is being started again; its log says: {last}"
        log.error("the private store ended; it is being started again", status=status, said=log_tail)
        cause = NO_ROOM.search(log_tail) or SHORT_WRITE.search(log_tail)
        if cause is not None:
            self._stuck, self.room.unable = time.monotonic(), cause[0]
