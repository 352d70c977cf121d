"""The laws for encoded gradients: the log keeps their bytes, and every number is checked."""

import asyncio

import numpy as np
import pytest

from adamd.errors import (
    BadGradient,
    InternalError,
    InvalidRequest,
    MalformedBody,
    StepConflict,
    TooLarge,
    WrongDtype,
    WrongLength,
)
from adamd.wire import encodings, layout
from adamd.wire.dtypes import narrow, storage, widen
from adamd.wire.encodings import INT8, LAZY, RAW, SPARSE
from adamd_service.engine import CreateCall, RequestBody, StepCall
from adamd_service.engine.rebuilding import check_body, gradient_of
from adamd_service.optim import FusedKernel, Lazy, State, Update, apply, encoded, parse_settings, plan
from adamd_service.records import Record, Spec

from .conftest import bodies_left, body_of, resummed, run

SHAPES = {"a": (1000,), "b": (899_000,), "c": (50,)}  # int8: 0.9 MB; sparse: more or less, so inline and in chunks
SMALL = {"a": (40,), "b": (300,), "c": (5,)}
SETTINGS = {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01, "groups": [{"tensors": ["c"], "lr": 0.1}]}


def creation(shapes, dtype, seed=0, **more):
    made = layout.named_layout(shapes)
    start = np.random.default_rng(seed).standard_normal(made.size).astype(dtype)
    return CreateCall(layout=made, dtype=dtype, optimizer=SETTINGS, parameters=start, **more)


def given(rng, encoding, size, dtype):
    """A body in an encoding, and what Adamd-Dtype says of it."""
    gradient = rng.standard_normal(size).astype(np.float32)
    if encoding == INT8:
        return encodings.encode_int8(gradient), None
    if encoding == RAW:
        return gradient.view(np.uint8), "float32"
    wire = str(rng.choice(["float16", "float32", dtype]))
    chosen = np.flatnonzero(rng.random(size) < rng.choice([0.001, 0.3]))
    if rng.random() < 0.5:
        chosen = chosen[chosen >= size // 2]  # leaves tensor a out of a lazy one
    return encodings.encode_sparse(chosen, gradient[chosen].astype(storage(wire))), wire


def call(ref, number, body, encoding, dtype=None, **more):
    return StepCall(ref, number, body_of(body.tobytes()), dtype, encoding=encoding, **more)


def fold(create, bodies):
    """What the bodies make of the state, without any server."""
    made, dtype = create.layout, np.dtype(create.dtype)
    settings = parse_settings(SETTINGS)
    state = State.fresh(create.parameters, len(made.tensors), settings)
    for encoding, (body, wire) in bodies:
        gradient = encoded(encoding, encodings.body_dtype(encoding, wire, create.dtype), body, made.size, dtype)
        here = range(len(made.tensors)) if not isinstance(gradient, Lazy) else gradient.touched(made.bounds)
        updates = plan(settings, made.names, state.counts, [i in here for i in range(len(made.tensors))], dtype)
        apply(state, gradient, updates, made.bounds, None, FusedKernel())
    return state


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shapes", [SMALL, SHAPES], ids=["inline", "chunks"])
def test_law_1_a_log_of_every_encoding_is_the_state_bit_for_bit(replica, shapes, dtype):
    """Steps in all encodings, through snapshots; a replica that saw none of them reads the same state back."""
    rng = np.random.default_rng(7)

    async def scenario():
        create = creation(shapes, dtype)
        async with replica(snapshot_records=7) as one:
            session = (await one.create(create)).head.spec.id
            sent = []
            for number in range(1, 18):
                encoding = [INT8, SPARSE, LAZY, RAW][number % 4]
                body, wire = given(rng, encoding, create.layout.size, dtype)
                answer = await one.step(call(session, number, body, encoding, wire))
                sent.append((encoding, (body, wire)))
                while one.hot.find(session).snapshotting:
                    await asyncio.sleep(0.005)
            wanted = fold(create, sent)
            assert answer.parameters.tobytes() == wanted.params.tobytes()
            head = (await one.view(session)).head
            assert 7 <= head.snapshots[-1].step < 17  # so the fold begins at a snapshot and goes on from there
            records = await asyncio.to_thread(one.store.records, session, head.snapshots[-1].step + 1, 17)
            for record in records:
                encoding, (body, _) = sent[record.step - 1]
                kept = np.empty(record.nbytes, np.uint8)
                await asyncio.to_thread(one.store.read_body, session, record, kept)
                assert record.encoding == encoding and kept.tobytes() == body.tobytes()
            async with replica() as other:
                exported = await other.export(session)
            assert {n: a.tobytes() for n, a in exported.arrays.items()} == {
                n: a.tobytes() for n, a in wanted.arrays.items()
            }
            assert exported.counts == tuple(wanted.counts)

    run(scenario())


def test_law_3_the_digest_covers_the_encoding(replica):
    """The same bytes again are a replay; the same numbers in other bytes, and the same bytes of another meaning, not."""
    rng = np.random.default_rng(1)

    async def scenario():
        async with replica() as engine:
            create = creation(SMALL, "float32")
            session, size = (await engine.create(create)).head.spec.id, create.layout.size
            body = encodings.encode_sparse(np.arange(0, size, 3), rng.standard_normal(-(-size // 3)).astype(np.float32))
            first = await engine.step(call(session, 1, body, SPARSE))
            assert (await engine.step(call(session, 1, body, SPARSE))).replayed
            assert (await engine.step(call(session, 1, body, SPARSE, "float32"))).replayed  # what it was anyway
            dense = np.zeros(size, np.float32)
            indices, values = encodings.sparse_parts(body, "float32")
            dense[indices] = values
            for other in (call(session, 1, body, LAZY), call(session, 1, dense.view(np.uint8), RAW)):
                with pytest.raises(StepConflict):
                    await engine.step(other)
            assert (await engine.parameters(session)).chain == first.chain

    run(scenario())


@pytest.mark.parametrize("shapes", [SMALL, SHAPES], ids=["inline", "chunks"])
def test_law_6_hostile_bodies_change_nothing_and_leave_nothing(replica, shapes):
    rng = np.random.default_rng(2)

    async def scenario():
        async with replica() as engine:
            create = creation(shapes, "float32")
            session, size = (await engine.create(create)).head.spec.id, create.layout.size
            before = (await engine.view(session)).head
            gradient = rng.standard_normal(size).astype(np.float32)

            async def refused(error, body, encoding, dtype=None, index=None, told=None):
                with pytest.raises(error, match=told) as caught:
                    await engine.step(call(session, 1, body, encoding, dtype))
                assert caught.value.step == 0
                assert index is None or caught.value.extra["index"] == index

            good = encodings.encode_int8(gradient)
            for cut in (good[:-1], np.append(good, np.uint8(0)), good[:0], good[4:]):
                await refused(WrongLength, cut, INT8, told="scales")
            last = -(-size // 256) - 1
            for value in (np.nan, np.inf, -np.inf, -1.0, -0.0):
                for block in (0, last):
                    bad = good.copy()
                    encodings.int8_parts(bad, size)[0][block] = value
                    await refused(BadGradient, bad, INT8, index=block * 256, told="scale")
            bad = good.copy()
            encodings.int8_parts(bad, size)[0][last], encodings.int8_parts(bad, size)[1][-1] = 3e38, -128
            encodings.int8_parts(bad, size)[1][last * 256 : -1] = 0
            await refused(BadGradient, bad, INT8, index=size - 1, told="overflows")
            await refused(WrongDtype, good, INT8, "float64")
            await refused(WrongDtype, good, INT8, "float16")
            for encoding in (SPARSE, LAZY):
                every = np.arange(size)
                good = encodings.encode_sparse(every, gradient)
                for cut in (good[:-1], good[:-4], np.append(good, np.zeros(8, np.uint8)), good[:9]):
                    await refused(WrongLength, cut, encoding, told="multiple of 8")
                for place, value in ((size - 1, size), (size - 1, 2**32 - 1), (7, 6), (1, 0), (size // 2, size - 1)):
                    indices = every.copy()
                    indices[place] = value
                    wrong = place + (value == size - 1)  # there the one after it is not above it
                    told = f"index {wrong} "
                    await refused(MalformedBody, encodings.encode_sparse(indices, gradient), encoding, told=told)
                for place, value in ((0, np.nan), (size - 1, np.inf), (size // 2, -3e38)):
                    values = gradient.copy()
                    values[place] = value
                    await refused(BadGradient, encodings.encode_sparse(every, values), encoding, index=place)
                shifted = encodings.encode_sparse([3, 9], np.array([1, np.nan], np.float32))
                await refused(BadGradient, shifted, encoding, index=9)  # the element's, not the value's
                await refused(WrongDtype, good, encoding, "float64")
            with pytest.raises(InvalidRequest, match="octet-stream"):
                await engine.step(StepCall(session, 1, body_of(b"{}"), decode=lambda *_: None, encoding=INT8))
            with pytest.raises(InvalidRequest, match="whole vector"):
                await engine.step(call(session, 1, good, SPARSE, tensors=("a",)))
            assert (await engine.view(session)).head == before
            assert not await bodies_left(engine, session)

    run(scenario())


def test_law_6_a_length_is_refused_before_a_byte_is_read(replica):
    async def scenario():
        async with replica(body=1 << 20) as engine:
            session = (await engine.create(creation(SHAPES, "float32"))).head.spec.id

            async def chunks():
                raise AssertionError("the body was read")
                yield b""

            for encoding, length, error in (
                (INT8, 900_050 + 4 * 3516 + 1, WrongLength),
                (SPARSE, 12, WrongLength),
                (LAZY, 8 * 900_051, TooLarge),
                (SPARSE, 1 << 60, TooLarge),
            ):
                with pytest.raises(error):
                    await engine.step(StepCall(session, 1, RequestBody(length, chunks()), encoding=encoding))

    run(scenario())


@pytest.mark.parametrize("shapes", [SMALL, SHAPES], ids=["inline", "chunks"])
def test_a_sparse_body_of_unknown_length_is_counted(replica, shapes):
    rng = np.random.default_rng(3)

    async def scenario():
        async with replica() as engine:
            create = creation(shapes, "float64")
            session, size = (await engine.create(create)).head.spec.id, create.layout.size
            chosen = np.arange(1, size, 2)
            body = encodings.encode_sparse(chosen, rng.standard_normal(len(chosen)))

            def unknown(data, encoding):
                return StepCall(session, 1, RequestBody(None, body_of(data).chunks), encoding=encoding)

            with pytest.raises(WrongLength):
                await engine.step(unknown(body.tobytes()[:-1], SPARSE))
            with pytest.raises(TooLarge):
                await engine.step(unknown(bytes(12 * size + 1), SPARSE))
            answer = await engine.step(unknown(body.tobytes(), LAZY))
            assert answer.parameters.tobytes() == fold(create, [(LAZY, (body, "float64"))]).params.tobytes()
            assert (await engine.step(call(session, 1, body, LAZY))).replayed
            assert engine.in_flight.used <= 2 * answer.parameters.nbytes

    run(scenario())


@pytest.mark.parametrize("encoding", [INT8, SPARSE, LAZY])
@pytest.mark.parametrize("changed", ["body", "encoding", "updates", "length"])
def test_what_the_store_changed_of_an_encoded_record_is_not_served(replica, valkey, encoding, changed):
    rng = np.random.default_rng(4)

    async def scenario():
        create = creation(SMALL, "float32")
        async with replica() as engine:
            session = (await engine.create(create)).head.spec.id
            body, wire = given(rng, encoding, create.layout.size, "float32")
            while encoding != INT8 and len(body) < 100:
                body, wire = given(rng, encoding, create.layout.size, "float32")
            await engine.step(call(session, 1, body, encoding, wire))
        client, record = valkey.client(), f"adamd:{{{session}}}:record:1"
        if changed == "body":
            client.hset(record, "inline", body[::-1].tobytes())
        elif changed == "length":
            client.hset(record, "inline", body[:-1].tobytes())
        else:
            meta = client.hget(record, "meta")
            other = {INT8: SPARSE, SPARSE: LAZY, LAZY: SPARSE}[encoding]
            old, new = (
                (f'"encoding":"{encoding}"', f'"encoding":"{other}"')
                if changed == "encoding"
                else ('"last":1', '"last":2')
            )
            assert old.encode() in meta or changed == "updates"
            meta = meta.replace(old.encode(), new.encode())
            meta = meta.replace(b'"first":0', b'"first":1') if changed == "updates" else meta
            client.hset(record, "meta", resummed(meta))
        client.close()
        async with replica() as engine:
            with pytest.raises(InternalError, match=r"damaged|chain|length|covers|other tensors|updates"):
                await engine.parameters(session)

    run(scenario())


@pytest.mark.parametrize("covered", [[0, 1], [0], [0, 1, 2]])
def test_a_record_that_lies_consistently_says_nowhere_to_write(covered):
    """Whoever can write the store can make digest and chain agree: what a body then says must still be in range."""
    made = layout.named_layout(SMALL)
    spec = Spec("s_1", None, "default", made, "float32", "committed", {}, 0.0)
    scalars = plan(parse_settings({}), ["a"], [0], [True], np.dtype("float32"))[0].scalars
    updates = (Update(covered[0], covered[-1] + 1, scalars),)

    def record(body, encoding):
        return Record(1, "a", "d", "", "", "float32", [], (), body.tobytes(), encoding=encoding)

    for indices in ([0, 345], [7, 3, 41], [5, 5, 41]):
        body = encodings.encode_sparse(indices, np.ones(len(indices), np.float32))
        with pytest.raises(InternalError, match="damaged"):
            gradient_of(record(body, LAZY), updates, spec, body)
    body = encodings.encode_sparse([0, 41], np.ones(2, np.float32))
    if covered == [0, 1]:
        gradient_of(record(body, LAZY), updates, spec, body)
    else:
        with pytest.raises(InternalError, match="other tensors"):
            gradient_of(record(body, LAZY), updates, spec, body)
    for encoding in (INT8, SPARSE):
        if covered != [0, 1, 2]:
            with pytest.raises(InternalError, match="covers"):
                check_body(record(body, encoding), updates, made)


def test_a_record_without_an_encoding_is_raw(replica, valkey):
    """The logs of the first version do not say it."""
    rng = np.random.default_rng(5)

    async def scenario():
        create = creation(SMALL, "float32")
        async with replica() as engine:
            session = (await engine.create(create)).head.spec.id
            body, _ = given(rng, RAW, create.layout.size, "float32")
            answer = await engine.step(call(session, 1, body, RAW))
        client, record = valkey.client(), f"adamd:{{{session}}}:record:1"
        meta = client.hget(record, "meta")
        assert b'"encoding":"raw",' in meta
        client.hset(record, "meta", resummed(meta.replace(b'"encoding":"raw",', b"")))
        client.close()
        async with replica() as engine:
            assert (await engine.parameters(session)).parameters.tobytes() == answer.parameters.tobytes()

    run(scenario())


@pytest.mark.parametrize("durability", ["committed", "memory"])
@pytest.mark.parametrize("answer", ["float16", "bfloat16", "float32"])
def test_answers_are_rounded_once_and_counted_by_what_they_take(replica, answer, durability):
    rng = np.random.default_rng(6)

    async def scenario():
        async with replica() as engine:
            create = creation(SHAPES, "float64", durability=durability)
            session, size = (await engine.create(create)).head.spec.id, create.layout.size
            body, wire = given(rng, RAW, size, "float64")
            told = await engine.step(call(session, 1, body, RAW, wire, answer_dtype=answer))
            assert (told.dtype, told.overflowed) == (answer, 0)
            assert told.parameters.nbytes == size * storage(answer).itemsize == engine.in_flight.used
            exact = await engine.parameters(session)
            wanted = np.empty(size, storage(answer))
            narrow(exact.parameters, answer, wanted)
            assert told.parameters.tobytes() == wanted.tobytes()
            assert exact.parameters.tobytes() == fold(create, [(RAW, (body, wire))]).params.tobytes()
            read = await engine.parameters(session, answer)
            again = await engine.step(call(session, 1, body, RAW, wire, answer_dtype=answer))
            assert again.replayed and again.parameters.tobytes() == read.parameters.tobytes() == wanted.tobytes()
            for wide in ("float128", "int8"):
                with pytest.raises(WrongDtype):
                    await engine.parameters(session, wide)

    run(scenario())


def test_an_answer_wider_than_the_session_is_refused_before_the_step(replica):
    async def scenario():
        async with replica() as engine:
            session = (await engine.create(creation(SMALL, "float32"))).head.spec.id
            with pytest.raises(WrongDtype, match="no more"):
                await engine.step(call(session, 1, np.zeros(345 * 4, np.uint8), RAW, answer_dtype="float64"))
            assert (await engine.view(session)).head.step == 0

    run(scenario())


def test_what_a_narrow_answer_cannot_hold_is_counted(replica):
    async def scenario():
        async with replica() as engine:
            start = np.array([1e5, 65504, 65519.9, 65520, -1e30, 1e-9, 3.4e38, -3.4e38], np.float32)
            create = CreateCall(layout.vector_layout((8,)), "float32", {"lr": 1e-30}, start)
            session = (await engine.create(create)).head.spec.id
            for answer, many in (("float16", 5), ("bfloat16", 2), ("float32", 0)):
                read = await engine.parameters(session, answer)
                assert read.overflowed == many
                back = widen(read.parameters, answer, "float32")
                assert int(np.isinf(back).sum()) == many and not read.diverged
            told = await engine.step(call(session, 1, np.zeros(32, np.uint8), RAW, answer_dtype="float16"))
            assert told.overflowed == 5

    run(scenario())
