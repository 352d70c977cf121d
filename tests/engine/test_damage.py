"""A store whose bytes have changed: refused in words, rebuilt from what is whole, or of no effect; never served.

docs/decisions/integrity.md has the table of what covers each field. Here every bit of every field is turned, one after the other.
"""

import asyncio
import json
import re
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import structlog

from adamd.errors import AdamdError, Damaged, SessionDeleted, StoreUnavailable
from adamd_service.store import serialization

from .conftest import create_call, run, step_call

SIZE = 6
RNG = np.random.default_rng(12)
SETTINGS = {"name": "nadam", "lr": 0.01, "keep_best": True, "stop": {"target_loss": 0.001}}


async def stepped(engine, session, number, **more):
    gradient = RNG.standard_normal(SIZE).astype(np.float32)
    return await engine.step(step_call(session, number, gradient, metrics={"loss": 1.0 / number}, **more))


async def made(engine, steps, settings=SETTINGS, **more):
    """A session with this many steps, all of what a session may have in its keys."""
    start = RNG.standard_normal(SIZE).astype(np.float32)
    session = (await engine.create(create_call(start, settings, **more))).head.spec.id
    for number in range(1, steps + 1):
        await stepped(engine, session, number, settings={"lr": 0.02} if number == 3 else None)
    return session


async def settled(engine, session, step):
    """Wait until the snapshot of a step is there."""
    deadline = time.monotonic() + 30
    while (await asyncio.to_thread(engine.store.load_head, session)).snapshots[-1].step != step:
        assert time.monotonic() < deadline, "no snapshot came"
        await asyncio.sleep(0.01)


async def history(replica):
    """A session with all that one may have: seven steps, and snapshots of the third and of the sixth."""
    async with replica() as engine, replica(snapshot_records=1) as keen:
        session = await made(engine, 2)
        for number in range(3, 8):
            where = keen if number in (3, 6) else engine
            await stepped(where, session, number, settings={"lr": 0.02} if number == 3 else None)
            if where is keen:
                await settled(keen, session, number)
        return session, await told(engine, session)


async def told(engine, session):
    """Everything that decides about what comes next: the state, the settings, and what a replay would be told."""
    view = await engine.view(session)
    exported = await engine.export(session)
    arrays = {name: array.tobytes() for name, array in exported.arrays.items()}
    head = view.head
    return (
        *(head.step, head.chain, head.prev_chain, head.settings, head.settings_revision, head.progress, head.spec),
        *(arrays, exported.counts, exported.carried, view.diverged, head.incarnation, head.parameters_missing),
    )


@pytest.fixture(scope="module")
def client(valkey):
    with valkey.client() as client:
        yield client


def key(session, *parts):
    return ":".join(("adamd", f"{{{session}}}", *map(str, parts)))


# Of no effect: when a snapshot is due; a snapshot beside one that is whole; a seal of an older revision, as the version
# before leaves it; and what nobody reads again, because a snapshot covers it.
HARMLESS = {("head", "log_bytes"), ("head", "snapshots"), ("head", "sealed")}


def flips(value, most):
    """The value with one bit turned: every bit of a short one, of a long one as many as are wanted."""
    bits = range(8 * len(value))
    for place in bits if len(bits) <= most else range(0, len(bits), -(-len(bits) // most) | 1):
        turned = bytearray(value)
        turned[place // 8] ^= 1 << place % 8
        yield bytes(turned)


def same_value(there, turned):
    """The last digit of a number may be another, and the number the same."""
    with suppress(ValueError):
        return json.loads(there) == json.loads(turned)
    return False


def fields_of(client, session):
    """(what it is, key, field): every field of every hash that a session has."""
    for name in ("head", "ring", *(f"record:{step}" for step in range(1, 20))):
        for field in client.hkeys(key(session, name)):
            yield name.partition(":")[0], key(session, name), field.decode()


@pytest.mark.slow
@pytest.mark.parametrize("most", [12, 150])
def test_every_bit_that_decides_is_under_a_sum(replica, client, most):
    """One bit of any field: the session is refused as damaged, or all that it says is as before."""

    async def scenario():
        session, right = await history(replica)
        async with replica() as engine:
            for kind, name, field in list(fields_of(client, session)):
                there = client.hget(name, field)
                read = kind == "head" or name.endswith(":7") or there.startswith(b"7 ")
                for turned in flips(there, most):
                    client.hset(name, field, turned)
                    with engine.hot.use(session) as one:
                        one.drop()
                    now = None
                    with suppress(Damaged):
                        now = await told(engine, session)
                    if now is not None:
                        assert now == right, (kind, field, there, turned)
                        harmless = (kind, field) in HARMLESS or same_value(there, turned)
                        assert not read or harmless, (kind, field, there, turned)
                client.hset(name, field, there)
            assert await told(engine, session) == right

    run(scenario())


def test_every_field_is_in_the_table(replica, client):
    """A new field of a head or of a record gets a sum, and a line in docs/decisions/integrity.md."""

    async def scenario():
        async with replica() as engine:
            return await made(engine, 3)

    session = run(scenario())
    text = (Path(__file__).parents[2] / "docs/decisions/integrity.md").read_text(encoding="utf-8")
    table = text.partition("| field | what covers it |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+)`", table))
    there = {field for kind, _, field in fields_of(client, session) if kind != "ring"}
    for _, name, field in fields_of(client, session):
        value = client.hget(name, field)
        with suppress(ValueError):
            parsed = json.loads(value)
            if isinstance(parsed, dict) and field in ("meta", "newest", "spec"):
                there |= parsed.keys()
    assert there - named == set()


def test_a_field_that_is_renamed_is_seen(replica, client):
    """A bit in a field's name: what it was is missing, and what it is now nobody wrote."""

    async def scenario():
        async with replica() as engine:
            session = await made(engine, 2)
        async with replica() as engine:
            for kind, name, field in list(fields_of(client, session)):
                if kind == "ring":  # its fields are places; an entry says its own step
                    continue
                value = client.hget(name, field)
                client.hdel(name, field)
                client.hset(name, "x" + field[1:], value)
                with pytest.raises(Damaged):
                    await told(engine, session)
                client.hdel(name, "x" + field[1:])
                client.hset(name, field, value)
            await told(engine, session)

    run(scenario())


@pytest.mark.parametrize("lost", ["turned", "missing", "counts"])
def test_an_older_snapshot_serves_where_the_newest_is_damaged(replica, client, lost):
    """It and the whole log are kept, so nothing is lost: it is rebuilt, told, and a new one takes the damaged one's place."""

    async def scenario():
        session, right = await history(replica)
        head = serialization.head_from(session, client.hgetall(key(session, "head")))
        older, newest = head.snapshots
        chunk = key(session, "snapshot", newest.id, "exp_avg", 0)
        if lost == "turned":
            client.setrange(chunk, 5, b"\x55")
        elif lost == "missing":
            client.delete(chunk)
        else:
            fields = client.hmget(key(session, "head"), "snapshots", "newest")
            changed = [text.replace(b'"counts":[6]', b'"counts":[7]') for text in fields]
            assert changed != fields
            client.hset(key(session, "head"), mapping=dict(zip(("snapshots", "newest"), changed, strict=True)))
        async with replica() as engine:
            with structlog.testing.capture_logs() as logs:
                assert await told(engine, session) == right
            assert [one["session"] for one in logs if "older snapshot" in one["event"]] == [session]
            await stepped(engine, session, 8)
            await settled(engine, session, 8)
            assert [ref.id for ref in (await engine.view(session)).head.snapshots][0] == older.id
            right = await told(engine, session)
        async with replica() as engine:
            with structlog.testing.capture_logs() as logs:
                assert await told(engine, session) == right
            assert logs == []

    run(scenario())


@pytest.mark.parametrize("lost", ["record:2", "body", "snapshot", "ring"])
def test_what_is_missing_for_good_is_damage_and_not_for_later(replica, client, lost):
    """503 would have its clients come again for ever."""

    async def scenario():
        async with replica() as engine:
            start = np.zeros(300_000, np.float32)
            session = (await engine.create(create_call(start))).head.spec.id
            for number in range(1, 4):
                await engine.step(step_call(session, number, np.ones(300_000, np.float32)))
        for name in list(client.scan_iter(match=key(session, lost) + "*", count=1000)):
            client.delete(name)
        async with replica() as engine:
            if lost == "ring":  # it only tells of steps that are over
                assert (await engine.parameters(session)).step == 3
                return
            for call in (engine.parameters, engine.export, engine.view):
                with pytest.raises(Damaged, match="missing for good"):
                    await call(session)
            with pytest.raises(Damaged):
                await engine.step(step_call(session, 4, np.ones(300_000, np.float32)))
            await engine.delete(session)
            with pytest.raises(SessionDeleted):
                await engine.view(session)

    run(scenario())


@pytest.mark.parametrize(
    ("field", "value"),
    [("parameters_missing", "2"), ("step", "x"), ("spec", "{"), ("snapshots", "[]"), ("settings", "[1]"), (None, None)],
)
def test_one_damaged_session_harms_no_other(replica, client, field, value):
    """It is listed as what it is, answers its own calls in words, and can be deleted, with If-Match too."""

    async def scenario():
        async with replica() as engine:
            whole, session = await made(engine, 1), await made(engine, 2, name=f"n-{RNG.integers(10**9)}")
            chain = (await engine.view(session)).head.chain
        if field is None:
            client.set(key(session, "head"), "no hash")
        else:
            client.hset(key(session, "head"), field, value)
        async with replica() as engine:
            heads, token = [], None
            while True:
                page, token = await engine.list(100, token)
                heads += page
                if token is None:
                    break
            (broken,) = [one for one in heads if getattr(one, "id", None) == session]
            assert broken.detail
            assert [one for one in heads if getattr(one, "spec", None) and one.spec.id == whole]
            for call in (
                engine.view(session),
                engine.parameters(session),
                engine.export(session),
                engine.patch(session, {"lr": 0.5}, None),
                engine.step(step_call(session, 3, np.ones(SIZE, np.float32))),
                engine.step(step_call(session, None, np.ones(SIZE, np.float32), key="k")),
            ):
                with pytest.raises(Damaged) as error:
                    await call
                assert error.value.code == "damaged"
            with pytest.raises(Damaged):
                async for _ in engine.watch(session):
                    pass
            await engine.keep_house()
            await engine.delete(session, None if field is None else chain)
            with pytest.raises(SessionDeleted):
                await engine.view(session)
            await stepped(engine, whole, 2)

    run(scenario())


def test_damage_in_what_all_share_stops_no_housework(replica, client):
    """An id and an entry of garbage that nobody can read: the others are swept, and the server is well."""

    async def scenario():
        async with replica() as engine:
            session = await made(engine, 1)
            client.sadd("adamd:{index.default}:littered", b"\xff\xfe", session)
            client.zadd("adamd:{index.default}:sessions", {b"s_\xff": 1.0})
            client.set("adamd:{s_1}:garbage", "no list")
            client.sadd("adamd:{index.default}:deleted", "s_1")
            client.rpush(key(session, "garbage"), "{", b"\xff")
            try:
                for _ in range(30):
                    await engine.keep_house()
                await engine.list(100, None)
                await engine.view(session)
            finally:
                client.zrem("adamd:{index.default}:sessions", b"s_\xff")
                client.srem("adamd:{index.default}:littered", b"\xff\xfe")
                client.srem("adamd:{index.default}:deleted", "s_1")
                client.delete("adamd:{s_1}:garbage")

    run(scenario())


def as_before(client, session):
    """The keys as the version before wrote them: no sums, no format."""
    head = key(session, "head")
    fields = {name.decode(): value.decode() for name, value in client.hgetall(head).items()}

    def bare(text):
        value = json.loads(text)
        value.pop("sum")
        return serialization.dumps(value)

    refs = [bare(json.dumps(one)) for one in json.loads(fields["snapshots"])]
    old = {"spec": bare(fields["spec"]), "progress": fields["progress"].lstrip(), "newest": refs[-1] if refs else ""}
    client.hset(head, mapping=old | {"snapshots": f"[{','.join(refs)}]"})
    client.hdel(head, "format", "sealed", "progressed")
    for place, entry in client.hgetall(key(session, "ring")).items():
        client.hset(key(session, "ring"), place, re.sub(rb"\.\w+", b"", entry))
    for record in client.scan_iter(match=key(session, "record", "*"), count=1000):
        client.hset(record, "meta", bare(client.hget(record, "meta")))


def test_a_session_of_the_version_before_goes_on(replica, client):
    """All that it says is as it was; what is written from now on has sums."""

    async def scenario():
        session, right = await history(replica)
        as_before(client, session)
        async with replica(snapshot_records=2) as engine:
            assert await told(engine, session) == right
            await stepped(engine, session, 8)
            await settled(engine, session, 8)
            await engine.patch(session, {"lr": 0.5}, {"who": "tests"})
            right = await told(engine, session)
        assert client.hget(key(session, "head"), "sealed").startswith(b"2 ")
        async with replica() as engine:
            assert await told(engine, session) == right
            client.hset(key(session, "head"), "settings", client.hget(key(session, "head"), "settings") + b" ")
            with engine.hot.use(session) as one:
                one.drop()
            with pytest.raises(Damaged, match="seal"):
                await told(engine, session)

    run(scenario())


def test_a_replica_of_the_version_before_changes_settings_beside_this_one(replica, client):
    """It knows no seal: its revision is another one, and the settings count."""

    async def scenario():
        async with replica() as engine:
            session = await made(engine, 3)
            settings = json.loads(client.hget(key(session, "head"), "settings"))
            changed = serialization.dumps(settings | {"lr": 0.25})
            client.hset(key(session, "head"), mapping={"settings": changed, "settings_revision": "2"})
            assert (await engine.view(session)).head.settings["lr"] == 0.25
            await stepped(engine, session, 4, settings={"lr": 0.125})
        async with replica() as engine:
            assert (await engine.view(session)).head.settings["lr"] == 0.125

    run(scenario())


def test_a_newer_format_is_told_and_not_guessed(replica, client):
    async def scenario():
        async with replica() as engine:
            session = await made(engine, 1)
        client.hset(key(session, "head"), "format", "3")
        async with replica() as engine:
            with pytest.raises(Damaged, match="newer adamd"):
                await engine.view(session)

    run(scenario())


def test_a_session_that_is_changed_each_time_is_for_later(replica, client, monkeypatch):
    """Its chunks are missing because it moves on under the reader: that is no damage."""

    async def scenario():
        async with replica() as engine:
            session = await made(engine, 4)
        async with replica() as engine:
            number = iter(range(100))
            client.delete(key(session, "record", 2))
            there = client.hget(key(session, "head"), "prev_chain").decode()

            def read_ahead(head):
                client.hset(key(session, "head"), "step", str(5 + next(number)))
                return real(head)

            real = engine.store.read_ahead
            monkeypatch.setattr(engine.store, "read_ahead", read_ahead)
            with pytest.raises(StoreUnavailable, match="changed each time") as error:
                await engine.view(session)
            assert not isinstance(error.value, Damaged) and there

    run(scenario())


def test_a_small_session_is_read_without_a_lease_and_again_where_it_moved_on(replica, monkeypatch):
    """What it named was unlinked between its head and the rest: it is found missing, and the new head is read."""

    async def scenario():
        async with replica(snapshot_records=2) as writer, replica() as engine:
            session = await made(writer, 1)

            def read_ahead(head):
                if not moved:
                    moved.append(head.step)
                    asyncio.run_coroutine_threadsafe(move_on(writer, session), loop).result(30)
                return real(head)

            moved, loop, real = [], asyncio.get_running_loop(), engine.store.read_ahead
            monkeypatch.setattr(engine.store, "read_ahead", read_ahead)
            monkeypatch.setattr(engine.store, "lease", lambda session_id: pytest.fail("two writes for a small session"))
            view = await engine.view(session)
            assert moved == [1]
            assert (view.head.step, view.head.chain) == (7, (await writer.view(session)).head.chain)

    run(scenario())


async def move_on(writer, session):
    """Steps, snapshots, and nothing of what there was before is left."""
    for number in range(2, 8):
        await stepped(writer, session, number)
        while writer.hot.find(session).snapshotting:
            await asyncio.sleep(0.01)
    await asyncio.to_thread(writer.store.collect, session)
    assert (await asyncio.to_thread(writer.store.load_head, session)).snapshots[0].step > 1


def test_a_creation_that_is_fenced_leaves_the_others_name(replica):
    """Only an id that is fenced for good gives its name back."""

    async def scenario():
        async with replica() as engine:
            session = await made(engine, 1, name="kept-by-its-session")
            with pytest.raises(AdamdError):
                await made(engine, 1, name="kept-by-its-session")
            assert (await engine.view("kept-by-its-session")).head.spec.id == session

    run(scenario())
