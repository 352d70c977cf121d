"""Records to what the store keeps and back, exactly; and nothing but InternalError from what is damaged."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamd.errors import InternalError
from adamd.wire import layout
from adamd_service.records import ArrayRef, BulkRef, Entry, Head, Record, SnapshotRef, Spec
from adamd_service.store import HeadVersion, chunks, serialization
from adamd_service.store.keys import IndexKeys, SessionKeys, slot

from .sessions import new_head

COUNTS = st.integers(0, 2**53)
TEXTS = st.text(max_size=20)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=4)
HEX = st.text("0123456789abcdef", min_size=1, max_size=64)
ATTEMPTS = st.text("0123456789abcdef", min_size=1, max_size=32)
PRINTABLE = st.text(min_size=1, max_size=20).filter(str.isprintable)
SHAPES = st.lists(st.integers(0, 12), max_size=4).map(tuple)
LAYOUTS = st.dictionaries(PRINTABLE, SHAPES, max_size=5).map(layout.named_layout) | SHAPES.map(layout.vector_layout)
EXTENTS = st.builds(BulkRef, extent=st.just("x000524288-7"), length=COUNTS)
BULK = st.builds(BulkRef, st.lists(COUNTS, max_size=4).map(tuple)) | EXTENTS
ARRAYS = st.builds(
    ArrayRef,
    name=st.sampled_from(["params", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"]),
    bulk=BULK,
    digest=HEX,
)
SNAPSHOTS = st.builds(
    SnapshotRef,
    id=HEX,
    step=COUNTS,
    chain=HEX,
    counts=st.lists(COUNTS, max_size=4).map(tuple),
    arrays=st.lists(ARRAYS, max_size=4).map(tuple),
)
SPECS = st.builds(
    Spec,
    id=TEXTS,
    name=st.none() | TEXTS,
    tenant=TEXTS,
    layout=LAYOUTS,
    dtype=st.sampled_from(["float32", "float64"]),
    durability=st.sampled_from(["committed", "memory"]),
    labels=st.dictionaries(TEXTS, TEXTS, max_size=3),
    created_at=FLOATS,
)


def whole(head):
    """The head as adamd makes them: its snapshots in order, none after its step; without one, parameters are missing."""
    steps = sorted({ref.step for ref in head.snapshots})
    refs = tuple(replace(ref, step=step) for ref, step in zip(head.snapshots, steps, strict=False))
    step = max([head.step, *steps])
    return replace(head, step=step, snapshots=refs, parameters_missing=not refs)


HEADS = st.builds(
    Head,
    spec=SPECS,
    incarnation=HEX,
    step=COUNTS,
    chain=HEX,
    prev_chain=HEX | st.just(""),
    settings=OBJECTS,
    settings_revision=COUNTS,
    snapshots=st.lists(SNAPSHOTS, max_size=2).map(tuple),
    log_bytes=COUNTS,
).map(whole)
RECORDS = st.builds(
    Record,
    step=COUNTS,
    attempt=HEX,
    digest=HEX,
    prev_chain=HEX,
    chain=HEX,
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    updates=st.lists(JSON, max_size=4),
    bulk=st.builds(BulkRef, st.lists(st.integers(1, 2**53), min_size=1, max_size=4).map(tuple)) | EXTENTS,
    inline=st.none(),
    settings=st.none() | OBJECTS,
    metrics=OBJECTS,
    numerics=TEXTS,
)


def stored(fields):
    return {name.encode(): value.encode() for name, value in fields.items()}


@given(HEADS)
def test_a_head_comes_back_exactly(head):
    fields = serialization.head_fields(head)
    assert serialization.head_from(head.spec.id, stored(fields)) == head
    standing = serialization.standing_from(head.spec.id, [fields[name].encode() for name in serialization.STANDING])
    wanted = (head.incarnation, head.step, head.chain, head.settings_revision, head.parameters_missing)
    assert standing == HeadVersion(*wanted)
    assert serialization.standing_from(head.spec.id, [None] * len(serialization.STANDING)) is None
    if head.snapshots:
        assert json.loads(fields["snapshots"])[-1] == json.loads(fields["newest"])


@given(RECORDS, st.binary(max_size=20))
def test_a_record_comes_back_exactly(record, inline):
    meta = serialization.record_meta(record).encode()
    assert serialization.record_from(record.step, meta, b"") == record
    small = replace(record, bulk=BulkRef(), inline=inline)
    assert serialization.record_from(record.step, serialization.record_meta(small).encode(), inline) == small
    with pytest.raises(InternalError):
        serialization.record_from(record.step + 1, meta, b"")


@given(st.builds(Entry, step=COUNTS, digest=HEX, attempt=ATTEMPTS, chain=HEX))
def test_a_place_of_the_ring_comes_back_exactly(entry):
    assert serialization.entry_from(serialization.entry_text(entry).encode()) == entry
    assert 0 <= slot(entry.step) < 256


DAMAGE = st.binary(max_size=20) | (JSON | st.just(10**400) | st.just({"id": []})).map(lambda v: json.dumps(v).encode())


@given(HEADS, st.data())
def test_a_damaged_head_is_an_internal_error_and_nothing_else(head, data):
    fields = stored(serialization.head_fields(head))
    name = data.draw(st.sampled_from(sorted(fields)))
    if data.draw(st.booleans()):
        del fields[name]
    else:
        fields[name] = data.draw(DAMAGE)
    try:
        serialization.head_from("s_1", fields)
    except InternalError as error:
        assert "damaged" in error.detail or "names no snapshot" in error.detail


@given(HEADS, st.data())
def test_damage_inside_of_the_spec_is_found(head, data):
    fields = serialization.head_fields(head)
    for field in ("spec", "newest") if head.snapshots else ("spec",):
        raw = json.loads(fields[field])
        name = data.draw(st.sampled_from(sorted(raw)))
        raw[name] = data.draw(JSON | st.just(10**400) | st.just([["w", [10**400]]]))
        text = json.dumps(raw)
        try:
            damaged = fields | ({"spec": text} if field == "spec" else {"snapshots": f"[{text}]"})
            serialization.head_from("s_1", stored(damaged))
        except InternalError:
            pass


@given(RECORDS, st.data())
def test_a_damaged_record_is_an_internal_error_and_nothing_else(record, data):
    raw = json.loads(serialization.record_meta(record))
    name = data.draw(st.sampled_from(sorted(raw)))
    raw[name] = data.draw(JSON | st.just(10**400))
    try:
        serialization.record_from(record.step, json.dumps(raw).encode(), b"")
        serialization.record_from(record.step, data.draw(DAMAGE), b"")
    except InternalError as error:
        assert "damaged" in error.detail


@settings(max_examples=20)
@given(HEADS, RECORDS)
def test_a_sum_under_another_name_counts(head, record):
    """One bit of its name would make it the text of the version before, which has none."""
    fields, meta = serialization.head_fields(head), serialization.record_meta(record)
    for field in ("spec", "snapshots") if len(head.snapshots) == 1 else ("spec",):
        changed = fields | {field: fields[field].replace('"sum":', '"sul":')}
        changed["newest"] = changed["newest"].replace('"sum":', '"sul":')
        with pytest.raises(InternalError):
            serialization.head_from(head.spec.id, stored(changed))
    with pytest.raises(InternalError):
        serialization.record_from(record.step, meta.replace('"sum":', '"sul":').encode(), b"")


@given(st.binary(max_size=40))
def test_a_damaged_place_of_the_ring_too(raw):
    try:
        serialization.entry_from(raw)
    except InternalError:
        pass


@given(st.integers(0, 2**45))
def test_no_body_has_more_than_a_thousand_chunks(nbytes):
    size = chunks.chunk_size(nbytes)
    assert size >= chunks.CHUNK_BYTES
    assert size % chunks.CHUNK_BYTES == 0
    assert -(-nbytes // size) <= chunks.MAX_CHUNKS
    assert nbytes <= chunks.MAX_CHUNKS * chunks.CHUNK_BYTES or -(-nbytes // size) > chunks.MAX_CHUNKS // 2, (
        "nor far fewer"
    )
    assert chunks.lifetime(nbytes) >= max(900, nbytes / 2**20)


@given(st.text(max_size=8), st.text(max_size=8))
def test_two_sessions_share_no_key(one, other):
    """Whatever the ids hold; a doubled key would mean one session's bytes in another one's log."""

    def keys(session_id):
        names = SessionKeys(session_id)
        return {
            *(names.head, names.ring, names.gone, names.garbage, names.readers, names.record(1)),
            *(names.chunk("a", 0), names.snapshot("a", "params", 0), names.fence("a"), names.idempotency("a")),
        }

    assert len(keys(one)) == 10
    if one != other:
        assert not keys(one) & keys(other)
    index = IndexKeys(one)
    assert not keys(other) & {index.names, index.sessions, index.former(other), index.idempotency(other)}


def test_a_key_of_a_client_may_hold_anything():
    odd = ["", "a" * 10_000, "\ud800", "}{:\n\x00", "ü"]
    assert len({SessionKeys("s").idempotency(key) for key in odd}) == len(odd)
    for key in odd:
        assert SessionKeys("s").idempotency(key).isprintable()


@given(HEADS, st.builds(Entry, step=COUNTS, digest=HEX, attempt=HEX, chain=HEX))
def test_the_version_before_reads_what_is_written_here(head, entry):
    """In a rolling upgrade it is at work on the same store. It wants four words, and knows each member of a progress."""
    step, digest, attempt, chain = serialization.entry_text(entry).split(" ")
    assert (int(step), digest, chain) == (entry.step, entry.digest, entry.chain)
    assert attempt.startswith(entry.attempt)  # which it compares with its own attempts alone
    fields = serialization.head_fields(head)
    assert json.loads(fields["progress"]) == head.progress
    assert json.loads(fields["settings"]) == head.settings


def test_a_progress_that_the_version_before_wrote_is_read():
    head = new_head(step=3, missing=True)
    fields = serialization.head_fields(replace(head, progress={"loss": 1.0}))
    there = stored(fields | {"progress": '{"loss":0.5}'})  # it leaves the sum as it was
    assert serialization.head_from(head.spec.id, there).progress == {"loss": 0.5}
    with pytest.raises(InternalError):
        serialization.head_from(head.spec.id, stored(fields | {"progress": ' {"loss":0.5}'}))
