"""Who drives a step: a thread from its beginning to its end, or the event loop as far as nothing in it blocks.

A step is a generator. It yields the commit that it wants made, and is sent its outcome, or thrown UnknownOutcome; it
yields None before whatever else waits for the store, which must not happen on the loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TypeAlias

from adamd_service.engine.calls import Answer
from adamd_service.records import Commit, CommitOutcome

Asked: TypeAlias = Commit | None
Told: TypeAlias = CommitOutcome | None
Taking: TypeAlias = Generator[Asked, Told, Answer]
Committing: TypeAlias = Callable[[Commit], CommitOutcome]
InThread: TypeAlias = Callable[[Callable[[], Answer]], Awaitable[Answer]]  # runs blocking work in a thread, to its end


def to_the_end(taking: Taking, commit: Committing) -> Answer:
    """Drive a step in this thread. Raises what it raises."""
    return _driven(taking, commit, lambda: next(taking))


def _driven(taking: Taking, commit: Committing, begin: Callable[[], Asked]) -> Answer:
    try:
        asked = begin()
        while True:
            told: Told = None
            if asked is not None:
                try:
                    told = commit(asked)
                except BaseException as error:
                    asked = taking.throw(error)
                    continue
            asked = taking.send(told)
    except StopIteration as done:
        answer: Answer = done.value
        return answer


async def soon(
    taking: Taking,
    commit_soon: Callable[[Commit], Awaitable[CommitOutcome | None]],
    commit: Committing,
    in_thread: InThread,
) -> Answer:
    """Drive a step on the event loop to its first commit and, once that is done, on; in a thread where it blocks.

    Raises what the step raises.
    """
    try:
        asked = next(taking)
        if asked is not None:
            try:
                told = await commit_soon(asked)
            except BaseException as error:
                asked = taking.throw(error)
            else:
                if told is not None:  # else it could not be sent from here, and is still to be made
                    asked = taking.send(told)
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    return await in_thread(lambda: _driven(taking, commit, lambda: asked))
