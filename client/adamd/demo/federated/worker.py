"""One client of the demo as a process: it joins the federations that it is told of.

A line on stdin is {"url": …, "session": …}; a line on stdout is an `Event` as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import adamd
from adamd.demo.digits import Images
from adamd.demo.federated import roles, training
from adamd.demo.federated.roles import Member, Role
from adamd.errors import AdamdError

LOOK = 0.1  # seconds between two looks of a client that is away
PATIENCE = 120.0  # seconds without a server, after which a client gives up


@dataclass(frozen=True, slots=True)
class Event:
    """What a client tells of itself.

    Attributes:
        client: its place.
        round: the one it is in; 0 behind the last one.
        what: "trains", "away", "over", "failed", or the outcome of a reply: "accepted", "duplicate", "too_late", ….
        words: of a failure.

    """

    client: int
    round: int
    what: str
    words: str = ""


def main() -> None:
    """Run the client whose place and directory are the arguments."""
    member, directory = roles.MEMBERS[int(sys.argv[1])], Path(sys.argv[2])
    images = Images(np.load(directory / f"{member.name}.pixels.npy"), np.load(directory / f"{member.name}.digits.npy"))
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            _take_part(asked["url"], asked["session"], member, images)
        except AdamdError as error:
            _tell(Event(member.place, 0, "failed", str(error)))
        else:
            _tell(Event(member.place, 0, "over"))


def _take_part(url: str, session: str, member: Member, images: Images) -> None:
    with adamd.connect(url, timeout=PATIENCE) as server:
        for task in server.federation(session, client=member.name).rounds():
            if member.away(task.round):
                _tell(Event(member.place, task.round, "away"))
                time.sleep(LOOK)
                continue
            _tell(Event(member.place, task.round, "trains"))
            trained, loss = training.train(task.parameters, images, (member.place, task.round))
            if member.role is Role.SLOW:
                time.sleep(roles.SECONDS)
            if member.role is Role.POISONED:
                trained = training.poisoned(task.parameters, trained)
            for _ in range(2 if member.role is Role.TWICE else 1):
                answer = task.reply(parameters=trained, num_examples=len(images), loss=loss)
                _tell(Event(member.place, task.round, answer.outcome))


def _tell(event: Event) -> None:
    print(json.dumps(asdict(event)), flush=True)


if __name__ == "__main__":
    main()
