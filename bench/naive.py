"""The naive server: it reads p, m and v from Redis, updates them, and writes them back.

A person who needs Adam as a service by the evening would write this.

Simple, but honest: one MGET, the update in NumPy without needless temporaries, one MSET (so that the three belong
together), octet-stream in and out, on uvicorn with uvloop and httptools as adamd is.
"""

from __future__ import annotations

import socket
import sys
from typing import cast

import numpy as np
import redis
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from numpy.typing import NDArray

LR, B1, B2, EPS = 1e-3, 0.9, 0.999, 1e-8
Floats = NDArray[np.float32]


def application(client: redis.Redis) -> FastAPI:
    """Return the service over this store."""
    app = FastAPI()

    def keys(name: str) -> list[str]:
        return [f"naive:{name}:{part}" for part in ("t", "p", "m", "v")]

    def create(name: str, body: bytes) -> None:
        zeros = bytes(len(body))
        client.mset(dict(zip(keys(name), (b"0", body, zeros, zeros), strict=True)))

    def step(name: str, body: bytes) -> bytes:
        count, *stored = cast("list[bytes]", client.mget(keys(name)))
        p, m, v = (np.frombuffer(raw, np.float32).copy() for raw in stored)
        t = int(count) + 1
        update(p, m, v, np.frombuffer(body, np.float32), t)
        answer = p.tobytes()
        client.mset(dict(zip(keys(name), (b"%d" % t, answer, m.tobytes(), v.tobytes()), strict=True)))
        return answer

    @app.put("/{name}")
    async def put(name: str, request: Request) -> Response:
        await run_in_threadpool(create, name, await request.body())
        return Response(status_code=204)

    @app.post("/{name}/step")
    async def post(name: str, request: Request) -> Response:
        answer = await run_in_threadpool(step, name, await request.body())
        return Response(answer, media_type="application/octet-stream")

    @app.delete("/{name}")
    async def delete(name: str) -> Response:
        await run_in_threadpool(client.delete, *keys(name))
        return Response(status_code=204)

    return app


def update(p: Floats, m: Floats, v: Floats, g: Floats, t: int) -> None:
    """Adam, in place."""
    m *= np.float32(B1)
    m += np.float32(1 - B1) * g
    v *= np.float32(B2)
    v += np.float32(1 - B2) * (g * g)
    d = np.sqrt(v)
    d /= np.float32((1 - B2**t) ** 0.5)
    d += np.float32(EPS)
    p -= np.float32(LR / (1 - B1**t)) * (m / d)


def main() -> None:
    """Serve on a free port of this machine."""
    app = application(redis.Redis.from_url(sys.argv[1], protocol=2, socket_timeout=120))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"naive is ready at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            app, loop="uvloop", http="httptools", access_log=False, log_level="warning", timeout_keep_alive=600
        )
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
