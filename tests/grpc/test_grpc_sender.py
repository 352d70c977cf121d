"""An answer on its way out, and what is left of it where the call ends."""

import asyncio
import gc
import weakref

import numpy as np

from adamd.wire import layout
from adamd_service.engine import Answer
from adamd_service.grpc.sending import INLINE, Sender
from adamd_service.records import Spec

SPEC = Spec("s", None, "default", layout.vector_layout((INLINE,)), "float32", "memory", {}, 0.0)


class NobodyReads:
    """A call whose other end takes nothing. A real one's does so only in some of hundreds of tries."""

    async def write(self, message):
        await asyncio.Event().wait()


def test_an_answer_that_was_given_up_is_let_go_of_at_once():
    """How a task ended knows its frames. One that they know in turn would stay, and its bytes count as in flight, until
    Python looks for cycles: on a quiet server, for ever.
    """

    async def scenario():
        answer = Answer(SPEC, 1, "c" * 64, np.zeros(INLINE, np.float32), False)
        kept = weakref.ref(answer.parameters)
        sender = Sender(NobodyReads(), 60.0)
        await sender.send(answer)
        await asyncio.sleep(0)
        sender.give_up()
        del answer, sender
        for _ in range(3):
            await asyncio.sleep(0)
        assert kept() is None

    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()
