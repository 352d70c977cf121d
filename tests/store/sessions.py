"""Sessions for the tests of the store: heads, records and commits as the engine makes them, without an engine."""

import secrets
import time
from dataclasses import replace

import numpy as np
import xxhash

from adamd.errors import StoreUnavailable
from adamd.wire import layout
from adamd_service.records import BulkRef, Commit, Committed, Head, Record, SnapshotRef, Spec
from adamd_service.rules import first_chain, next_chain


def new_head(size=10, *, name=None, step=0, missing=False, tensors=None, session_id=None, tenant="default", **spec):
    """A session that is not in the store yet."""
    session_id = session_id or f"s_{secrets.token_hex(10)}"
    shape = layout.vector_layout((size,)) if tensors is None else layout.named_layout(tensors)
    incarnation = secrets.token_hex(16)
    return Head(
        spec=Spec(
            **{
                "id": session_id,
                "name": name,
                "tenant": tenant,
                "layout": shape,
                "dtype": "float32",
                "durability": "committed",
                "labels": {"who": "tests"},
                "created_at": time.time(),
                **spec,
            }
        ),
        incarnation=incarnation,
        step=step,
        chain=first_chain(incarnation, {"size": size}, "0"),
        prev_chain="",
        settings={"name": "adam", "lr": 0.1},
        settings_revision=0,
        parameters_missing=missing,
    )


def params(head):
    return {"params": np.arange(head.spec.layout.size, dtype=head.spec.dtype)}


def create(store, size=10, *, key=None, arrays=None, **more):
    """Make a session; returns its head as the store has it."""
    head = new_head(size, **more)
    arrays = ({} if head.parameters_missing else params(head)) if arrays is None else arrays
    counts = () if head.parameters_missing else (0,) * len(head.spec.layout.tensors)
    store.create(head, arrays, counts, key)
    return store.load_head(head.spec.id)


def digest_of(body):
    return xxhash.xxh3_128_hexdigest(body)


def next_record(head, body=b"gradient", *, bulk=None, **more):
    """The record of the step after ``head``: ``body`` inline, or staged where ``bulk`` says."""
    digest = digest_of(body)
    updates = more.pop("updates", [[0, 1, {"lr": 0.1}]])
    number = head.step + 1
    return Record(
        **{
            "step": number,
            "attempt": secrets.token_hex(8),
            "digest": digest,
            "prev_chain": head.chain,
            "chain": next_chain(head.chain, number, digest, updates, "adamd-1"),
            "dtype": "float32",
            "updates": updates,
            "bulk": bulk or BulkRef(),
            "inline": None if bulk else body,
            "metrics": {"loss": 0.5},
            **more,
        }
    )


def commit_of(head, record, **more):
    """The commit of a record that changes no settings."""
    plain = {
        "incarnation": head.incarnation,
        "expect_revision": head.settings_revision,
        "record": record,
        "settings": head.settings,
        "settings_revision": head.settings_revision,
    }
    return Commit(**{**plain, **more})


def moved_on(head, record):
    """The head after a record."""
    return replace(
        head, step=record.step, chain=record.chain, prev_chain=head.chain, log_bytes=head.log_bytes + record.nbytes
    )


def staged(store, session_id, body, attempt=None):
    """Stage a body; returns the attempt and where it lies."""
    attempt = attempt or secrets.token_hex(8)
    staging = store.stage(session_id, attempt, len(body))
    staging.write(memoryview(body))
    store.__dict__.setdefault("stagings", []).append(staging)  # as a step keeps its own, until it is committed
    return attempt, staging.finish()


def staged_record(store, head, body, **more):
    attempt, ref = staged(store, head.spec.id, body)
    return next_record(head, body, bulk=ref, attempt=attempt, **more)


def step(store, head, body=b"gradient", *, staged_body=False):
    """Commit one step; returns the head after it."""
    record = staged_record(store, head, body) if staged_body else next_record(head, body)
    assert store.commit(head.spec.id, commit_of(head, record)) == Committed()
    return moved_on(head, record)


def steps(store, head, count, **more):
    for _ in range(count):
        head = step(store, head, **more)
    return head


def snapshot(store, head, covered=None, *, snapshot_id=None, damaged=""):
    """Write and commit a snapshot of ``head``; returns its reference and whether it was kept."""
    snapshot_id = snapshot_id or secrets.token_hex(8)
    data = np.full(head.spec.layout.size, head.step, head.spec.dtype).view(np.uint8)
    refs = tuple(store.snapshots.write_array(head.spec.id, snapshot_id, name, data) for name in ("params", "exp_avg"))
    ref = SnapshotRef(snapshot_id, head.step, head.chain, (head.step,) * len(head.spec.layout.tensors), refs)
    covered = head.log_bytes if covered is None else covered
    kept = store.snapshots.commit(head.spec, head.incarnation, ref, covered, damaged)
    return ref, kept


def body_of(store, session_id, record):
    into = np.empty(record.nbytes, np.uint8)
    store.read_body(session_id, record, into)
    return into.tobytes()


def array_of(store, session_id, ref, array):
    into = np.empty(array.bulk.nbytes, np.uint8)
    store.read_array(session_id, ref.id, array, into)
    return into.tobytes()


def keys_of(client, session_id):
    """Every key of a session in the store, without the session's prefix."""
    prefix = f"adamd:{{{session_id}}}:"
    return sorted(key.decode().removeprefix(prefix) for key in client.scan_iter(match=f"{prefix}*", count=1000))


def answering(store, within=20):
    """Wait until a store that stood still is asked again: what it is asked before is refused."""
    deadline = time.monotonic() + within
    while True:
        try:
            return store.ping()
        except StoreUnavailable:
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.01)
