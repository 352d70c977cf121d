"""Residuals: a file for what a client's lossy encoding dropped, so that error feedback survives a restart.

A contribution moves the residual on, from e_t to e_(t+1), where it was accepted; and a client may be killed before it
learns whether. So the file has both, written before the contribution is sent, and the server's record of the round
tells which of them counts.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from adamd.errors import AdamdError, InvalidRequest
from adamd.sansio.arrays import raw_bytes
from adamd.wire import safetensors
from adamd.wire.dtypes import Array, storage

NAMES: Final = ("before", "after")


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose residual it is: another session's, or another client's, is never taken."""

    session: str
    client: str
    dtype: str
    size: int


@dataclass(frozen=True, slots=True)
class Residuals:
    """The residual of a contribution of this kind to this round: ``before`` it, and ``after`` it. None: zeros."""

    round: int
    kind: str
    before: Array | None
    after: Array | None


def write(path: Path, owner: Owner, kept: Residuals) -> None:
    """Write the file, as a whole or not at all."""
    arrays = [(name, array) for name, array in zip(NAMES, (kept.before, kept.after), strict=True) if array is not None]
    said = {"session": owner.session, "client": owner.client, "round": kept.round, "kind": kept.kind}
    head = safetensors.write_header(
        ((name, owner.dtype, array.shape) for name, array in arrays), {"adamd": json.dumps(said)}
    )
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as file:
            file.write(head)
            for _, array in arrays:
                file.write(raw_bytes(array))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def read(path: Path, owner: Owner) -> Residuals | None:
    """Read the file; None where there is none.

    Raises:
        InvalidRequest: it is another session's or client's, or no such file.

    """
    try:
        body = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    try:
        header = safetensors.read_header(body)
        said = json.loads(header.metadata["adamd"])
        whose = said["session"], said["client"]
        arrays = {
            item.tensor.name: np.frombuffer(
                body[header.data_start :][item.start : item.end], storage(owner.dtype)
            ).copy()
            for item in header.tensors
            if item.dtype == owner.dtype and item.tensor.shape == (owner.size,)
        }
        if len(arrays) != len(header.tensors) or not arrays.keys() <= set(NAMES):
            raise ValueError("its arrays are of another layout")
        kept = Residuals(int(said["round"]), str(said["kind"]), arrays.get("before"), arrays.get("after"))
    except (AdamdError, KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(
            f"{path} is no file of residuals that this client wrote ({error}); name another file, or remove it"
        ) from None
    if whose != (owner.session, owner.client):
        raise InvalidRequest(
            f"{path} has the residuals of client {whose[1]!r} in session {whose[0]}; this is {owner.client!r} in "
            f"{owner.session}. Each client of each federation has a file of its own"
        )
    return kept


def remove(path: Path) -> None:
    """Remove the file: nobody knows any more what of it counts."""
    with suppress(FileNotFoundError):
        path.unlink()
