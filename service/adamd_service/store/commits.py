"""What `commit.lua` is told."""

from __future__ import annotations

from typing import TypeAlias

from adamd_service.records import Commit, Entry
from adamd_service.store import index, keys, serialization
from adamd_service.store.keys import SessionKeys

Arguments: TypeAlias = "list[str | bytes | int]"


def commit_call(session_id: str, commit: Commit) -> tuple[list[str], Arguments]:
    """Return the keys and the arguments of a commit, as the script has them in its head."""
    names, record, key = SessionKeys(session_id), commit.record, commit.idempotency
    body = names.body(record.attempt, len(record.chunks))
    client_key = names.idempotency("" if key is None else key.key)
    named = [names.head, names.ring, names.record(record.step), names.fence(record.attempt), client_key, *body]
    entry = Entry(record.step, record.digest, record.attempt, record.chain)
    settings = "" if commit.settings_revision == commit.expect_revision else serialization.dumps(commit.settings)
    args: Arguments = [
        *(commit.incarnation, record.prev_chain, record.step - 1, commit.expect_revision),
        *(record.step, keys.slot(record.step), serialization.entry_text(entry), record.attempt, record.chain),
        *(serialization.record_meta(record), record.inline or b""),
        *(settings, commit.settings_revision, record.nbytes),
        "" if key is None else f"{key.digest} {record.step}",
        index.DAY,
        "" if commit.progress is None else serialization.progress_text(commit.progress),
        serialization.seal(commit.incarnation, commit.settings_revision, settings) if settings else "",
        *record.chunks,
    ]
    return named, args
