"""The clients of a storm: threads that step sessions and write down what was acknowledged."""

import http.client
import json
import sys
import threading
import time
import traceback
from collections import Counter
from urllib.parse import urlsplit

import numpy as np

import adamd
from chaos.journal import Acknowledged, digest

PATIENCE = adamd.Timeout(total=240)
LEAD = 100  # steps that a racer may be ahead: the head remembers 256, after which nobody can tell whose a step was
LARGE_EVERY = 6  # one step of a client in so many goes to its large session


class Crew:
    """The writers together: they can be stopped between two steps, all of them, and go on."""

    def __init__(self):
        self.changed = threading.Condition()
        self.running, self.over = True, False
        self.idle, self.members = 0, []
        self.acknowledged = 0
        self.by_writer = Counter()
        self.replays = 0
        self.refused = 0  # answers that said `store_full`, of the clients that see them: the SDK keeps them to itself
        self.faults = []

    def start(self, writers):
        self.members = [threading.Thread(target=self._work, args=(one,), name=one.name) for one in writers]
        for one in self.members:
            one.start()

    def _work(self, writer):
        try:
            while self._may_go_on():
                writer.turn(self)
        except BaseException:
            with self.changed:
                self.faults.append(f"{writer.name}: {traceback.format_exc()}")
        finally:
            writer.close()
            with self.changed:
                self.idle += 1
                self.changed.notify_all()

    def _may_go_on(self):
        with self.changed:
            if not self.running and not self.over:
                self.idle += 1
                self.changed.notify_all()
                self.changed.wait_for(lambda: self.running or self.over)
                self.idle -= 1
            return not self.over

    def note(self, journal, one, *, replayed=False):
        """Write one acknowledgement down."""
        journal.add(one)
        with self.changed:
            self.acknowledged += 1
            self.by_writer[threading.current_thread().name] += 1
            self.replays += replayed
            self.changed.notify_all()

    def note_refusal(self):
        """Count one step that a full disk refused."""
        with self.changed:
            self.refused += 1
            self.changed.notify_all()

    def wait_for_refusal(self, within):
        """Wait until one more step is refused since the disk is full."""
        with self.changed:
            before = self.refused
            came = self.changed.wait_for(lambda: self.refused > before or self.faults, within)
        self.check()
        assert came, f"the disk is full, and nothing was refused in {within} s"

    def wait_for(self, more, within, writer):
        """Wait until one writer has so many more steps acknowledged: each has its own pauses between attempts."""
        with self.changed:
            wanted = self.by_writer[writer] + more
            came = self.changed.wait_for(lambda: self.by_writer[writer] >= wanted or self.faults, within)
        self.check()
        done = more - wanted + self.by_writer[writer]
        assert came, f"only {done} of {more} steps of {writer} in {within} s; it stands at\n{self.where(writer)}"

    def where(self, writer):
        """Return the stack of a writer's thread."""
        (ident,) = [one.ident for one in self.members if one.name == writer]
        return "".join(traceback.format_stack(sys._current_frames()[ident])[-6:])

    def check(self):
        assert not self.faults, "\n".join(self.faults)

    def pause(self):
        """Return when every writer has its answer and waits."""
        with self.changed:
            self.running = False
            parked = self.changed.wait_for(lambda: self.idle == len(self.members), PATIENCE.total + 60)
        self.check()
        assert parked, "a writer still waits for an answer"

    def resume(self):
        with self.changed:
            self.running = True
            self.changed.notify_all()

    def dismiss(self):
        """Tell every writer that its turn is the last."""
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def end(self):
        self.dismiss()
        for one in self.members:
            one.join()


class Owner:
    """A client with two sessions of its own, a small one and a large one, through the SDK."""

    def __init__(self, name, url, journals, seed):
        self.name, self.journals, self.seed = name, journals, seed
        self.client = adamd.connect(url, timeout=PATIENCE)
        self.sessions = [self.client.session(one.name) for one in journals]
        self.turns = 0

    def turn(self, crew):
        which = int(self.turns % LARGE_EVERY == 0)
        self.turns += 1
        session, journal = self.sessions[which], self.journals[which]
        seed = (*self.seed, which, session.step_number + 1)
        params = session.step(journal.gradient(seed))
        step = session.step_number
        crew.note(journal, Acknowledged(step, seed, step, session.chain, digest(params)))

    def close(self):
        self.client.close()


class Racer:
    """One of two clients that send different gradients as the same step, through the SDK."""

    def __init__(self, name, url, journal, seed, places):
        self.name, self.journal, self.seed = name, journal, seed
        self.client = adamd.connect(url, timeout=PATIENCE)
        self.session = self.client.session(journal.name)
        self.rng = np.random.default_rng(seed)
        self.places = places  # where each racer is; shared
        places[name] = 0

    def turn(self, crew):
        number = self.places[self.name] = self.session.step_number + 1
        if number > min(self.places.values()) + LEAD:
            time.sleep(0.02)
            return
        seed = (*self.seed, number)
        try:
            params = self.session.step(self.journal.gradient(seed))
        except (adamd.StepConflict, adamd.StepSuperseded) as lost:
            applied = lost.extra.get("applied", False)
            assert isinstance(applied, bool), f"step {number}: nobody knows any more whether it was applied"
            if applied:  # its answer was lost, and the other racer has gone on since
                crew.note(self.journal, Acknowledged(number, seed), replayed=True)
            self.session.parameters()
            return
        assert self.session.step_number == number
        crew.note(self.journal, Acknowledged(number, seed, number, self.session.chain, digest(params)))
        time.sleep(self.rng.uniform(0, 0.02))  # or the one with the faster transport would win for ever

    def close(self):
        self.client.close()


class Poster:
    """A client without the SDK: POST with an Idempotency-Key, sent again and again until an answer comes."""

    def __init__(self, name, url, journal, seed):
        self.name, self.journal, self.seed = name, journal, seed
        self.at = urlsplit(url)
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.connection = None

    def turn(self, crew):
        self.count += 1
        seed = (*self.seed, self.count)
        key, body = "-".join(map(str, seed)), self.journal.gradient(seed).tobytes()
        one, replayed = self._until_answered(crew, seed, key, body)
        crew.note(self.journal, one, replayed=replayed)
        if self.rng.random() < 0.2:  # a client that did not trust its answer
            again, replayed = self._until_answered(crew, seed, key, body)
            assert replayed, f"key {key} was used, and its repetition is no replay"
            assert again.step == one.step, f"key {key} was step {one.step}, and is step {again.step} when repeated"
        time.sleep(self.rng.uniform(0, 0.02))

    def _until_answered(self, crew, seed, key, body):
        deadline = time.monotonic() + PATIENCE.total
        while True:
            answer = self._once(crew, key, body)
            if answer is not None:
                headers, raw = answer
                now = int(headers["Adamd-Step"])
                step = int(headers.get("Adamd-Applied-Step", now))
                params = np.frombuffer(raw, self.journal.start.dtype)
                one = Acknowledged(step, seed, now, headers["ETag"].strip('"'), digest(params))
                return one, headers.get("Adamd-Replayed") == "true"
            assert time.monotonic() < deadline, f"POST {key}: no answer"
            time.sleep(self.rng.uniform(0.02, 0.3))

    def _once(self, crew, key, body):
        """Return headers and body of a 200; None where there was no answer, or one that says to try again."""
        headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": key}
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection(self.at.hostname, self.at.port, timeout=60)
            self.connection.request("POST", f"/v1/sessions/{self.journal.name}/steps", body, headers)
            response = self.connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return None
        if response.status in (429, 503):
            if json.loads(raw)["code"] == "store_full":
                crew.note_refusal()
            return None
        assert response.status == 200, (response.status, raw[:500])
        return response.headers, raw

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None
