"""Looks for markers of contributions in everything that a server keeps: its store's keys, and every file of its disk."""

import time
from contextlib import suppress

import redis

from chaos.contributors import MARK, TAIL

PAUSE = 0.2  # seconds between two looks
NEEDLE = MARK.tobytes()
TAIL_BYTES = TAIL * MARK.itemsize


class Remains:
    """The places where a server on an embedded store may have kept a contribution's bytes."""

    def __init__(self, data_dir):
        self.data_dir = data_dir

    def found(self):
        """Return what follows each marker, by the place it was found in: keys first, then files."""
        self._rewrite()
        places = {}
        with self._store() as store:
            for key in store.scan_iter(count=1000):
                places[f"key {key.decode()}"] = set().union(*map(_tails, _values(store, key)))
        for path in self.data_dir.rglob("*"):
            with suppress(FileNotFoundError):  # a log that was just rewritten
                if path.is_file():
                    places[f"file {path.relative_to(self.data_dir)}"] = _tails(path.read_bytes())
        return {place: tails for place, tails in places.items() if tails}

    def gone(self, within):
        """Look until nothing is found; returns what was found at last."""
        until = time.monotonic() + within
        while (places := self.found()) and time.monotonic() < until:
            time.sleep(PAUSE)
        return places

    def expiring(self, places):
        """Return those of these keys that the store drops by itself: chunks of uploads that never came to an end."""
        with self._store() as store:
            return {place for place in places if place.startswith("key ") and store.ttl(place[4:]) > 0}

    def drop(self, places):
        """Drop these keys now."""
        with self._store() as store:
            for place in places:
                store.delete(place[4:])

    def _rewrite(self):
        """Have the append-only file written anew: it keeps every command since the last time."""
        with self._store() as store:
            store.execute_command("BGREWRITEAOF")
            while True:
                state = store.info("persistence")
                if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
                    break
                time.sleep(0.02)
            assert state["aof_last_bgrewrite_status"] == "ok"

    def _store(self):
        return redis.Redis(unix_socket_path=str(self.data_dir / "store" / "valkey.sock"), protocol=2)


def _values(store, key):
    """Return every value of a key; none where it has just gone."""
    match store.type(key):
        case b"string":
            return [store.get(key) or b""]
        case b"hash":
            return [part for pair in store.hgetall(key).items() for part in pair]
        case b"list":
            return store.lrange(key, 0, -1)
        case b"set":
            return list(store.smembers(key))
        case b"zset":
            return store.zrange(key, 0, -1)
        case b"none":
            return []
        case other:
            raise AssertionError(f"{key} is a {other}; look into it here")


def _tails(data):
    """Return the bytes that follow each marker."""
    found, place = set(), data.find(NEEDLE)
    while place >= 0:
        begin = place + len(NEEDLE)
        found.add(data[begin : begin + TAIL_BYTES])
        place = data.find(NEEDLE, begin)
    return found
