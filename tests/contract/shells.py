"""The four shells of the SDK behind one face, so that one test speaks through each of them."""

import asyncio
import inspect
import threading

import adamd
import adamd.aio

HANDLES = adamd.aio.AsyncSession, adamd.aio.AsyncFederation, adamd.aio.AsyncTask, adamd.aio.AsyncFederatedRun
KINDS = ("http", "http-aio", "grpc", "grpc-aio")


class Awaited:
    """An asyncio client or session whose methods block: each call goes to one event loop in a thread."""

    loop = None

    def __init__(self, inner):
        self._inner = inner

    def __setattr__(self, name, value):
        if name == "_inner":
            object.__setattr__(self, name, value)
        else:
            setattr(self._inner, name, value)

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if not inspect.isroutine(found):
            return found

        def call(*args, **kwargs):
            made = found(*args, **kwargs)
            if inspect.isasyncgen(made):
                made = _all(made)
            return _faced(asyncio.run_coroutine_threadsafe(made, _loop()).result())

        return call

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


async def _all(items):
    return [item async for item in items]


def _faced(result):
    return Awaited(result) if isinstance(result, HANDLES) else result


def _loop():
    if Awaited.loop is None:
        Awaited.loop = asyncio.new_event_loop()
        threading.Thread(target=Awaited.loop.run_forever, daemon=True).start()
    return Awaited.loop


def url_of(kind, http, grpc):
    """Return the URL of a kind, from the ports of one server or of what stands before it."""
    return f"grpc://127.0.0.1:{grpc}" if kind.startswith("grpc") else f"http://127.0.0.1:{http}"


def connect(kind, url, **options):
    """Return a client of that kind, as a context manager."""
    return Awaited(adamd.aio.connect(url, **options)) if kind.endswith("aio") else adamd.connect(url, **options)
