"""The bulk directory: its lock, its identity and generation, which the store remembers, and the files in it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final, Protocol

import structlog

from adamd_service.store.bulk.disk import FULL, sync_names
from adamd_service.store.embedded import private_files
from adamd_service.store.outcomes import StoreRefused

FORMAT: Final = 1
IDENTITY: Final = "identity.json"
SECTOR: Final = 512  # bytes of the identity, which is padded: a disk writes all of them or none
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Identity:
    """Which directory it is, and how often a server has started on it: both stand in the store too.

    Attributes:
        id: 32 hexadecimal digits.
        generation: starts so far. A copy that was put back has fewer than the store.
        format: of the files.
        server: host and port of the server that has it, for people.

    """

    id: str
    generation: int
    format: int = FORMAT
    server: str = ""

    @property
    def token(self) -> str:
        """What a session's commits carry that name extents of this start, where replicas share a store."""
        return f"{self.id}:{self.generation}"


class Remembered(Protocol):
    """What the store remembers of its bulk directory."""

    def identity(self) -> Identity | None:
        """Return the identity of the directory that it used last."""

    def place(self) -> str:
        """Return the place of the directory whose server has given a sign of life lately; "" where none has."""

    def remember(self, identity: Identity, known: Identity | None, sessions: int) -> bool:
        """Remember it, if `identity` and the number of `sessions` are still these; False where another was faster."""

    def sessions(self) -> list[str]:
        """Return the sessions that may have bytes there."""

    def living(self, sessions: Sequence[str]) -> list[str]:
        """Return those of these sessions that are not deleted."""


class BulkDirectory:
    """A directory of extents, locked for this process.

    Attributes:
        path: where it is.
        is_new: the store had no note of it before `agree`.

    """

    def __init__(self, path: Path, option: str = "--bulk-dir") -> None:
        """``option``: of `adamd serve`, which chose the path; errors name it."""
        self.path = path
        self.is_new = False
        self._option = option
        self._lock: IO[str] | None = None

    @property
    def place(self) -> str:
        """Return what tells this directory from a copy of it."""
        status = self.path.stat()
        return f"{socket.gethostname()}:{status.st_dev}:{status.st_ino}"

    def open(self) -> None:
        """Make the directory where it is missing, and lock it.

        Raises:
            StoreRefused: it cannot be made or written, is open to others, or another process has it.

        """
        private_files.make(self.path, self._option)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock = os.fdopen(os.open(self.path / "lock", flags, 0o600), "w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise StoreRefused(f"another adamd uses {self.path}; give this one another {self._option}") from None
        except OSError as error:
            self.close()
            raise StoreRefused(
                f"cannot write in {self.path}: {error.strerror}; choose another {self._option}"
            ) from None

    def close(self) -> None:
        """Let another process have it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def agree(self, store: Remembered, server: str = "", *, allow_lost: bool = False) -> Identity:
        """Check that directory and store belong together, and note one more start in both.

        Args:
            store: what the store remembers.
            server: host and port of this server, for people.
            allow_lost: take this directory although sessions lose their bytes; not while a server has theirs.

        Raises:
            StoreRefused: it is another directory, an older copy, or empty, and sessions would lose their bytes; or it
                is a copy, and the server that has the directory lives.

        """
        here, known = self._identity(), store.identity()
        if here is not None and (known is None or known.id != here.id) and any(self.path.glob("[cx]*-*")):
            raise StoreRefused(
                f"{self.path} has the vectors of another store; choose another {self._option}, or remove this one if "
                "that store is no more"
            )
        if here is not None and known is not None and here.id == known.id and store.place() not in ("", self.place):
            raise StoreRefused(
                f"{self.path} is a copy of the bulk directory of a server that lives{_on(known)}; end that server "
                "first, and copy then. It counts as ended 30 s after its last sign of life"
            )
        sessions = store.sessions()
        if known is not None and (why := _difference(here, known)) and (living := store.living(sessions)):
            _accept_loss(
                f"{self.path} is not the bulk directory that this store used last{_on(known)}: {why}. "
                f"Sessions that have vectors there: {len(living)}",
                allowed=allow_lost,
                lives=store.place() != "",
            )
        if here is None:
            here = Identity(secrets.token_hex(16), 0)
        self.is_new = known is None or known.id != here.id
        generation = max(here.generation, 0 if known is None else known.generation) + 1
        identity = Identity(here.id, generation, server=server)
        self._write(identity)  # before the store: a start that dies between the two is one ahead, and is let in
        if not store.remember(identity, known, len(sessions)):
            raise StoreRefused(f"another server has just taken a bulk directory for this store; {self.path} is unused")
        return identity

    def _identity(self) -> Identity | None:
        try:
            raw = json.loads((self.path / IDENTITY).read_text())
            identity = Identity(str(raw["id"]), int(raw["generation"]), int(raw["format"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreRefused(f"{self.path / IDENTITY} cannot be read: {error}; put back what it was") from None
        if identity.format != FORMAT:
            raise StoreRefused(f"{self.path} has format {identity.format}; this adamd reads {FORMAT}: use a newer one")
        return identity

    def _write(self, identity: Identity) -> None:
        text = json.dumps(asdict(identity)).encode().ljust(SECTOR)
        new = self.path / f"{IDENTITY}.new"
        try:
            try:
                with private_files.opened(new) as file:
                    os.write(file, text)
                    os.fsync(file)
                new.replace(self.path / IDENTITY)
                sync_names(self.path)
            except OSError as error:
                if error.errno not in FULL or not (self.path / IDENTITY).exists():
                    raise
                self._overwrite(text)
        except OSError as error:
            raise StoreRefused(
                f"cannot write in {self.path}: {error.strerror}; choose another {self._option}"
            ) from None
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)

    def _overwrite(self, text: bytes) -> None:
        """Write over the identity where it lies, which a full disk allows: within a sector, so all of it or nothing."""
        with os.fdopen(os.open(self.path / IDENTITY, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb") as file:
            if os.fstat(file.fileno()).st_size != SECTOR:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _on(known: Identity) -> str:
    return f", on {known.server}" if known.server else ""


def _accept_loss(what: str, *, allowed: bool, lives: bool) -> None:
    """Log what is lost where that is allowed. ``lives``: the server that has the directory does.

    Raises:
        StoreRefused: it is not allowed.

    """
    if lives:
        raise StoreRefused(
            f"{what}, and the server that has it lives. Start this one without --bulk-dir, and it reaches all other "
            "sessions. Or end that server, and bring its directory; it counts as ended 30 s after its last sign of life"
        )
    if not allowed:
        raise StoreRefused(
            f"{what}; put that directory back. Where it is lost for good, start once with --allow-lost-vectors: these "
            "sessions are damaged then, and can only be deleted; the others go on"
        )
    log.error("vectors are lost, as --allow-lost-vectors allows", reason=what)


def _difference(here: Identity | None, known: Identity) -> str:
    """Return how a directory differs from the one that the store knows; "": it is the same."""
    if here is None:
        return "it is empty"
    if here.id != known.id:
        return "it is another one"
    if here.generation < known.generation:
        return f"it is an older copy (start {here.generation}, the store says {known.generation})"
    return ""
