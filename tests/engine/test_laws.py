"""The laws of ARCHITECTURE.md, on real stores. It names the guard that each of these tests watches.

tests/laws takes the guards out, one by one, and sees these tests go red.
"""

import asyncio
import contextlib
import re
import threading

import numpy as np
import pytest

from adamd.errors import (
    BadGradient,
    Busy,
    HistoryLost,
    IdempotencyMismatch,
    InternalError,
    StepConflict,
    StepGap,
    StepSuperseded,
    StoreUnavailable,
    TooLarge,
    WrongLength,
)
from adamd_service.optim import FusedKernel
from adamd_service.store import RedisStore

from .conftest import bodies_left, body_of, create_call, fold, resummed, run, step_call

RNG = np.random.default_rng(7)
SIZE = 600_000  # 2.4 MB: staged in chunks, not inline


def gradients(count, size=SIZE, dtype=np.float32):
    return [RNG.standard_normal(size).astype(dtype) for _ in range(count)]


async def stepped(engine, ref, number, gradient, **more):
    answer = await engine.step(step_call(ref, number, gradient, **more))
    return answer


@pytest.mark.parametrize("size", [50, SIZE], ids=["inline", "chunks"])
def test_law_1_state_is_the_fold_of_the_log(replica, size):
    """A replica that has never seen the session gets the bits of the one that made every step, through snapshots."""
    start, given = RNG.standard_normal(size).astype(np.float32), gradients(25, size)

    async def scenario():
        async with replica(snapshot_records=10) as one:
            session = (await one.create(create_call(start))).head.spec.id
            for number, gradient in enumerate(given, 1):
                answer = await stepped(one, session, number, gradient)
                await settled(one, session)
            head = (await one.view(session)).head
            assert head.snapshots[-1].step >= 20
            async with replica() as other:
                again = await other.parameters(session)
                exported = await other.export(session)
            assert again.parameters.tobytes() == answer.parameters.tobytes() == fold(start, given)
            here = await one.export(session)
            assert {k: v.tobytes() for k, v in here.arrays.items()} == {
                k: v.tobytes() for k, v in exported.arrays.items()
            }
            assert exported.counts == here.counts == (25,)

    run(scenario())


async def settled(engine, session):
    """Wait for a snapshot under way."""
    hot = engine.hot.find(session)
    while hot is not None and hot.snapshotting:
        await asyncio.sleep(0.005)


class Broken:
    """A kernel that fails in the middle of the array, as often as it is told."""

    def __init__(self):
        self.failures = 0
        self.real = FusedKernel()

    def __call__(self, block, scalars):
        if self.failures:
            self.failures -= 1
            block.p[: len(block.p) // 2] = 7
            raise RuntimeError("the kernel failed half way")
        return self.real(block, scalars)


def test_law_2_a_kernel_error_after_the_commit_is_rebuilt_from_the_store(replica):
    start, (first, second) = RNG.standard_normal(SIZE).astype(np.float32), gradients(2)

    async def scenario():
        kernel = Broken()
        async with replica(kernel) as engine:
            session = (await engine.create(create_call(start))).head.spec.id
            kernel.failures = 1
            with pytest.raises(RuntimeError):
                await stepped(engine, session, 1, first)
            # Committed, so applied: the retry is a replay, and the half-written arrays are gone.
            answer = await stepped(engine, session, 1, first)
            assert answer.replayed
            assert answer.parameters.tobytes() == fold(start, [first])
            assert (await stepped(engine, session, 2, second)).parameters.tobytes() == fold(start, [first, second])

    run(scenario())


@pytest.mark.parametrize("size", [50, SIZE], ids=["inline", "chunks"])
def test_law_2_nothing_is_applied_before_the_commit(replica, store_factory, size):
    """The store is away: the step is refused, and the arrays are as they were once it is back."""
    start, (first, second) = RNG.standard_normal(size).astype(np.float32), gradients(2, size)

    async def scenario():
        store = store_factory()
        async with replica(url=store.url, timeout=1.0) as engine:
            session = (await engine.create(create_call(start))).head.spec.id
            await stepped(engine, session, 1, first)
            store.kill()
            with pytest.raises(StoreUnavailable):
                await stepped(engine, session, 2, second)
            await asyncio.to_thread(store.start)
            assert (await engine.parameters(session)).parameters.tobytes() == fold(start, [first])
            answer = await stepped(engine, session, 2, second)
            assert not answer.replayed
            assert answer.parameters.tobytes() == fold(start, [first, second])

    run(scenario())


@pytest.mark.parametrize("size", [2000, SIZE], ids=["inline", "chunks"])
def test_law_2_a_commit_whose_answer_was_lost_is_found_out(replica, store_factory, size):
    """The store stops while the commit is on its way: whether it happened is asked, never guessed."""
    start, given = RNG.standard_normal(size).astype(np.float32), gradients(8, size)

    async def scenario():
        store = store_factory()
        async with replica(url=store.url, timeout=0.3) as engine:
            session = (await engine.create(create_call(start))).head.spec.id
            ways = {name: getattr(engine.store, name) for name in ("commit", "commit_soon")}
            armed, stopped = set(), set()

            def stopping(name):
                def commit(*args):
                    if armed:
                        armed.clear()
                        stopped.add(name)
                        store.pause()  # the command arrives, and is run when the store goes on: after the time-out
                        threading.Timer(0.4, store.resume).start()
                    return ways[name](*args)

                return commit

            for name in ways:
                setattr(engine.store, name, stopping(name))
            asked, resolve = [], engine.store.resolve
            engine.store.resolve = lambda *args: asked.append(args) or resolve(*args)
            for number, gradient in enumerate(given, 1):
                await engine.store.lines.grow(asyncio.to_thread)  # or the loop has none: the one before was thrown away
                armed.add(number)
                task = asyncio.create_task(stepped(engine, session, number, gradient))
                try:
                    answer = await task
                except StoreUnavailable:
                    await asyncio.sleep(0.3)
                    answer = await stepped(engine, session, number, gradient)
                assert answer.step == number
            assert answer.parameters.tobytes() == fold(start, given)
            assert ("commit_soon" in stopped) == (size < SIZE and engine.device.inline)
            assert asked
            async with replica(url=store.url) as other:  # the log is whole: a replica that saw nothing reads it back
                assert (await other.parameters(session)).parameters.tobytes() == fold(start, given)

    run(scenario())


@pytest.mark.parametrize("size", [50, SIZE], ids=["inline", "chunks"])
def test_law_2_a_caller_that_goes_away_leaves_a_whole_session(replica, size):
    start, given = RNG.standard_normal(size).astype(np.float32), gradients(20, size)

    async def scenario():
        async with replica() as engine:
            session = (await engine.create(create_call(start))).head.spec.id
            for number, gradient in enumerate(given, 1):
                task = asyncio.create_task(stepped(engine, session, number, gradient))
                await asyncio.sleep((0.0007 if size == SIZE else 0.00005) * number)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                answer = await stepped(engine, session, number, gradient)
                assert answer.parameters.tobytes() == fold(start, given[:number])

    run(scenario())


def test_law_3_one_digest_per_step(replica):
    start, (first, second, third) = RNG.standard_normal(SIZE).astype(np.float32), gradients(3)

    async def scenario():
        async with replica() as engine:
            session = (await engine.create(create_call(start))).head.spec.id
            one = await stepped(engine, session, 1, first)
            again = await stepped(engine, session, 1, first)
            assert again.replayed and not one.replayed
            assert again.chain == one.chain
            assert again.parameters.tobytes() == one.parameters.tobytes() == fold(start, [first])
            with pytest.raises(StepConflict):
                await stepped(engine, session, 1, second)
            with pytest.raises(StepGap):
                await stepped(engine, session, 3, second)
            await stepped(engine, session, 2, second)
            for gradient, applied in ((first, True), (third, False)):
                with pytest.raises(StepSuperseded) as told:
                    await stepped(engine, session, 1, gradient)
                assert told.value.extra["applied"] is applied
            assert (await engine.parameters(session)).parameters.tobytes() == fold(start, [first, second])

    run(scenario())


def test_law_3_the_digest_covers_settings_and_presence(replica):
    start, (first,) = RNG.standard_normal(50).astype(np.float32), gradients(1, 50)

    async def scenario():
        async with replica() as engine:
            session = (await engine.create(create_call(start))).head.spec.id
            await stepped(engine, session, 1, first, settings={"lr": 0.5})
            with pytest.raises(StepConflict):
                await stepped(engine, session, 1, first, settings={"lr": 0.25})
            assert (await stepped(engine, session, 1, first, settings={"lr": 0.5})).replayed

    run(scenario())


@pytest.mark.parametrize("size", [50, SIZE], ids=["inline", "chunks"])
def test_law_5_any_replica_may_serve_and_one_history_comes_of_it(replica, size):
    """Three replicas race for every step with gradients of their own: each step has one winner, told to all."""
    start = RNG.standard_normal(size).astype(np.float32)

    async def scenario():
        async with replica() as one, replica() as two, replica() as three:
            session = (await one.create(create_call(start))).head.spec.id
            winners = []
            for number in range(1, 16):
                offered = gradients(3, size)
                outcomes = await asyncio.gather(
                    *(stepped(e, session, number, g) for e, g in zip((one, two, three), offered, strict=True)),
                    return_exceptions=True,
                )
                won = [g for g, o in zip(offered, outcomes, strict=True) if not isinstance(o, BaseException)]
                lost = [o for o in outcomes if isinstance(o, BaseException)]
                assert len(won) == 1, outcomes
                assert all(isinstance(o, StepConflict) for o in lost)
                winners += won
            expected = fold(start, winners)
            for engine in (one, two, three):
                assert (await engine.parameters(session)).parameters.tobytes() == expected

    run(scenario())


def test_law_5_a_patch_on_one_replica_counts_for_the_steps_of_another(replica):
    start, given = RNG.standard_normal(50).astype(np.float32), gradients(40, 50)

    async def scenario():
        async with replica() as one, replica() as two:
            session = (await one.create(create_call(start))).head.spec.id
            told = {}

            async def patches():
                for turn in range(8):
                    lr = 0.02 + turn / 100
                    view = await two.patch(session, {"lr": lr}, None)
                    told[view.head.step + 1] = lr  # or before: other steps may have come in between
                    assert view.head.settings["lr"] == lr
                    await asyncio.sleep(0.004)

            patching = asyncio.create_task(patches())
            for number, gradient in enumerate(given, 1):
                answer = await stepped(one, session, number, gradient)
            await patching
            records = await asyncio.to_thread(one.store.records, session, 1, len(given))
            used = [record.updates[0]["step_size"] * (1 - 0.9**record.step) for record in records]
            # Every record used the settings that stood in the head when it was committed: never older ones.
            for step, lr in told.items():
                assert step > len(given) or used[step - 1] >= lr * (1 - 1e-6), step
            known = [0.01, *(0.02 + turn / 100 for turn in range(8))]
            near = [min(known, key=lambda one: abs(one - lr)) for lr in used]
            assert near == pytest.approx(used, rel=1e-6) and near == sorted(near)
            changes = {step: {"lr": lr} for step, lr in enumerate(near, 1)}
            assert answer.parameters.tobytes() == fold(start, given, changes=changes)

    run(scenario())


def test_law_5_a_store_that_went_back_is_told(replica, store_factory):
    """After a failover the same step number names another history: the chain tells, and nothing is resumed silently."""
    start, given = RNG.standard_normal(50).astype(np.float32), gradients(4, 50)

    async def scenario():
        store = store_factory()
        async with replica(url=store.url) as engine:
            session = (await engine.create(create_call(start))).head.spec.id
            answers = [await stepped(engine, session, n, g) for n, g in enumerate(given[:2], 1)]
            client = store.client()
            before = {key: client.dump(key) for key in client.keys("*")}
            lost = await stepped(engine, session, 3, given[2])
            client.flushall()
            for key, value in before.items():
                client.restore(key, 0, value)
            client.close()
            with pytest.raises(HistoryLost) as told:
                await stepped(engine, session, 4, given[3], if_match=lost.chain)
            assert told.value.step == 2
            # The same number, another gradient: another chain, so a client of the old one is told as well.
            other = await stepped(engine, session, 3, given[3], if_match=answers[1].chain)
            assert other.chain != lost.chain
            with pytest.raises(HistoryLost):
                await stepped(engine, session, 4, given[3], if_match=lost.chain)
            assert other.parameters.tobytes() == fold(start, [*given[:2], given[3]])

    run(scenario())


def test_law_6_what_is_refused_changes_nothing_and_reads_nothing(replica):
    start, (good,) = RNG.standard_normal(SIZE).astype(np.float32), gradients(1)

    async def scenario():
        async with replica(body=4 * SIZE) as engine:
            session = (await engine.create(create_call(start))).head.spec.id
            before = (await engine.view(session)).head

            def unread(length):
                async def chunks():
                    raise AssertionError("the body was read")
                    yield b""

                from adamd_service.engine import RequestBody, StepCall

                return StepCall(session, 1, RequestBody(length, chunks()))

            for length in (4 * SIZE - 1, 4 * SIZE + 1, 0, 8 * SIZE):
                with pytest.raises(WrongLength):
                    await engine.step(unread(length))
            for value, where in ((np.nan, 0), (np.inf, SIZE - 1), (-np.inf, 70_000), (3e38, 150_001)):
                bad = good.copy()
                bad[where] = value
                with pytest.raises(BadGradient) as told:
                    await stepped(engine, session, 1, bad)
                assert told.value.extra["index"] == where
            short = step_call(session, 1, good)
            with pytest.raises(WrongLength):
                await engine.step(
                    type(short)(session, 1, type(short.body)(4 * SIZE, step_call("", 1, good[:-1]).body.chunks))
                )
            assert (await engine.view(session)).head == before
            assert not await bodies_left(engine, session)  # what was staged of a refused upload is taken back

    run(scenario())


def keys_of(engine, session):
    return list(engine.store._client.scan_iter(match=f"*{session}*", count=1000))


def test_law_6_a_session_too_large_for_this_server_is_refused_before_it_is_loaded(replica):
    async def scenario():
        async with replica() as large:
            session = (await large.create(create_call(np.zeros(500_000, np.float32)))).head.spec.id
            async with replica(hot=1 << 20) as small:
                with pytest.raises(TooLarge):
                    await small.parameters(session)
                with pytest.raises(TooLarge):
                    await small.create(create_call(np.zeros(500_000, np.float32)))

    run(scenario())


def test_law_7_bytes_in_flight_are_bounded(replica):
    start, (gradient,) = RNG.standard_normal(SIZE).astype(np.float32), gradients(1)

    async def scenario():
        async with replica(in_flight=2 * 4 * SIZE) as engine:
            session = (await engine.create(create_call(start))).head.spec.id
            gate = asyncio.Event()

            async def slow():
                yield gradient.tobytes()[:1000]
                await gate.wait()
                yield gradient.tobytes()[1000:]

            from adamd_service.engine import RequestBody, StepCall

            waiting = asyncio.create_task(engine.step(StepCall(session, 1, RequestBody(4 * SIZE, slow()))))
            await asyncio.sleep(0.1)
            with pytest.raises(Busy) as told:
                await stepped(engine, session, 1, gradient)
            assert told.value.retry_after
            gate.set()
            answer = await waiting
            assert answer.step == 1
            assert engine.in_flight.used == answer.parameters.nbytes  # until the transport has let go of it
            del answer, waiting
            await asyncio.sleep(0.05)  # the loop lets go of what it has just delivered
            assert engine.in_flight.used == 0
            assert (await stepped(engine, session, 1, gradient)).replayed

    run(scenario())


def test_law_7_hot_bytes_are_bounded_and_eviction_loses_nothing(replica):
    """Twelve sessions in room for three, stepped at once: evicted to the store, rebuilt, bit for bit."""
    size = 20_000
    starts = [RNG.standard_normal(size).astype(np.float32) for _ in range(12)]
    given = [gradients(6, size) for _ in starts]

    async def scenario():
        async with replica(hot=3 * 12 * size, snapshot_records=4) as engine:
            ids = [(await engine.create(create_call(start))).head.spec.id for start in starts]
            most = 0

            async def train(session, mine):
                nonlocal most
                for number, gradient in enumerate(mine, 1):
                    while True:
                        try:
                            answer = await stepped(engine, session, number, gradient)
                            break
                        except Busy:
                            await asyncio.sleep(0.002)
                    most = max(most, engine.hot.used)
                    await asyncio.sleep(0)
                return answer.parameters.tobytes()

            results = await asyncio.gather(*(train(s, g) for s, g in zip(ids, given, strict=True)))
            assert most <= engine.hot.limit
            assert results == [fold(s, g) for s, g in zip(starts, given, strict=True)]

    run(scenario())


def test_a_post_is_applied_once_whatever_is_repeated(replica):
    start, (first, second) = RNG.standard_normal(SIZE).astype(np.float32), gradients(2)

    async def scenario():
        async with replica() as one, replica() as two:
            session = (await one.create(create_call(start))).head.spec.id
            answers = await asyncio.gather(
                *(stepped(e, session, None, first, key="k1") for e in (one, two, one, two)), return_exceptions=True
            )
            assert [a.step for a in answers] == [1] * 4, answers
            assert sum(not a.replayed for a in answers) == 1
            later = await stepped(two, session, None, second, key="k2")
            assert later.step == 2
            repeated = await stepped(one, session, None, first, key="k1")
            assert repeated.replayed and repeated.applied_step == 1 and repeated.step == 2
            with pytest.raises(IdempotencyMismatch):
                await stepped(one, session, None, second, key="k1")
            with pytest.raises(IdempotencyMismatch):
                await stepped(one, session, 3, second, key="k1")
            assert (await one.parameters(session)).parameters.tobytes() == fold(start, [first, second])

    run(scenario())


def test_what_a_deleted_session_held_is_swept_where_its_deleter_died(replica):
    async def scenario():
        async with replica() as engine:
            session = (await engine.create(create_call(np.zeros(SIZE, np.float32)))).head.spec.id
            await stepped(engine, session, 1, gradients(1)[0])
            await asyncio.to_thread(engine.store.delete, session)  # and nobody collects
            assert [key for key in keys_of(engine, session) if b":body:" in key]
            await engine.keep_house()
            left = [key.rsplit(b":", 1)[1] for key in keys_of(engine, session)]
            assert left == [b"gone"]

    run(scenario())


@pytest.mark.parametrize("reads", [False, True])
def test_what_a_session_that_goes_on_has_unnamed_is_swept(replica, monkeypatch, reads):
    """Its writer died before it had collected, or a reader was at work then; and no further snapshot is taken."""

    async def scenario():
        async with replica(snapshot_records=2) as engine:
            session = (await engine.create(create_call(np.zeros(SIZE, np.float32)))).head.spec.id
            with (
                RedisStore.lease(engine.store, session) if reads else contextlib.nullcontext(),
                monkeypatch.context() as patch,
            ):
                if not reads:
                    patch.setattr(engine.store, "collect", lambda session: 0)
                for number, gradient in enumerate(gradients(4), 1):
                    await stepped(engine, session, number, gradient)
                    while engine.hot.find(session).snapshotting:
                        await asyncio.sleep(0.01)
            assert [key for key in keys_of(engine, session) if key.endswith(b":record:1")]
            await engine.keep_house()
            left = keys_of(engine, session)
            head = await asyncio.to_thread(engine.store.load_head, session)
            named = {snapshot.id.encode() for snapshot in head.snapshots}
            assert {key.split(b":")[3] for key in left if b":snapshot:" in key} == named
            assert sorted(int(key.rsplit(b":", 1)[1]) for key in left if b":record:" in key) == [3, 4]

    run(scenario())


def test_what_parameters_that_are_set_again_unnamed_is_swept(replica, monkeypatch):
    """Whoever set them died before it had collected."""

    async def scenario():
        async with replica() as engine:
            session = (await engine.create(create_call(np.zeros(SIZE, np.float32)))).head.spec.id
            chunks = len([key for key in keys_of(engine, session) if b":snapshot:" in key])
            with monkeypatch.context() as patch:
                patch.setattr(engine.store, "collect", lambda session: 0)
                await engine.set_parameters(session, body_of(np.ones(SIZE, np.float32).tobytes()), None, None)
                await asyncio.sleep(0.1)  # what it does in the background
            assert len([key for key in keys_of(engine, session) if b":snapshot:" in key]) == 2 * chunks
            await engine.keep_house()
            assert len([key for key in keys_of(engine, session) if b":snapshot:" in key]) == chunks

    run(scenario())


def test_parameters_that_are_set_again_take_no_further_room(replica):
    async def scenario():
        async with replica() as engine:
            session = (await engine.create(create_call(np.zeros(SIZE, np.float32)))).head.spec.id
            chunks = len([key for key in keys_of(engine, session) if b":snapshot:" in key])
            for value in range(5):
                given = np.full(SIZE, value, np.float32)
                await engine.set_parameters(session, body_of(given.tobytes()), None, None)
        async with replica() as engine:  # the first has ended, and with it what it did in the background
            assert len([key for key in keys_of(engine, session) if b":snapshot:" in key]) == chunks
            assert (await engine.parameters(session)).parameters[0] == 4

    run(scenario())


@pytest.mark.parametrize("changed", ["body", "scalars", "snapshot", "inline"])
def test_what_the_store_changed_is_seen_and_not_served(replica, valkey, changed):
    """Bit rot, or a hand in the store: the digest or the chain says so; nothing is computed from it."""
    size = 50 if changed == "inline" else SIZE
    start, given = RNG.standard_normal(size).astype(np.float32), gradients(2, size)

    async def scenario():
        async with replica() as engine:
            session = (await engine.create(create_call(start))).head.spec.id
            for number, gradient in enumerate(given, 1):
                await stepped(engine, session, number, gradient)
        client = valkey.client()
        if changed == "scalars":
            record = f"adamd:{{{session}}}:record:1"
            meta = client.hget(record, "meta")
            changed_meta, times = re.subn(rb'"step_size":[0-9.e-]+', b'"step_size":0.25', meta)  # a float32 as well
            assert times == 1
            client.hset(record, "meta", resummed(changed_meta))
        elif changed == "inline":
            client.hset(f"adamd:{{{session}}}:record:1", "inline", given[1].tobytes())
        else:
            chunk = next(client.scan_iter(match=f"*{session}*:{changed}:*:0"))
            client.setrange(chunk, 1000, b"\x00\x01\x02\x03")
        async with replica() as engine:
            with pytest.raises(InternalError, match=r"damaged|chain"):
                await engine.parameters(session)
        client.close()

    run(scenario())
