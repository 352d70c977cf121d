"""Keys and arguments of the script that commits a step."""

from __future__ import annotations

from typing import TypeAlias

from redis.exceptions import ResponseError

from adamd.errors import AdamdError
from adamd_service.records import Commit, Entry, RoundClosing
from adamd_service.store import index, keys, serialization
from adamd_service.store.connection.failures import in_the_middle, refused
from adamd_service.store.keys import SessionKeys
from adamd_service.store.outcomes import UnknownOutcome

Arguments: TypeAlias = "list[str | bytes | int]"
COMMIT_OVERHEAD_BYTES = 4096  # of a commit without its body, at least


def commit_call(session_id: str, commit: Commit, bulk_token: str) -> tuple[list[str], Arguments]:
    """Return the keys and arguments of a commit, in the order of the head comment of commit.lua."""
    names, record, key = SessionKeys(session_id), commit.record, commit.idempotency
    body = names.body(record.attempt, len(record.bulk.chunks))
    client_key = names.idempotency("" if key is None else key.key)
    script_keys = [names.head, names.ring, names.record(record.step), names.fence(record.attempt), client_key]
    closing = commit.closing
    script_keys += [names.bulk, *([] if closing is None else _round_keys(names, record.step)), *body]
    entry = Entry(record.step, record.digest, record.attempt, record.chain)
    settings = "" if commit.settings_revision == commit.expect_revision else serialization.dumps(commit.settings)
    args: Arguments = [
        *(commit.incarnation, record.prev_chain, record.step - 1, commit.expect_revision),
        *(record.step, keys.slot(record.step), serialization.entry_text(entry), record.attempt, record.chain),
        *(serialization.record_meta(record), record.inline or b""),
        *(settings, commit.settings_revision, record.nbytes),
        "" if key is None else f"{key.digest} {record.step}",
        index.DAY_SECONDS,
        "" if commit.progress is None else serialization.progress_text(commit.progress),
        serialization.seal(commit.incarnation, commit.settings_revision, settings) if settings else "",
        bulk_token,
        *(("",) * 6 if closing is None else _round_arguments(closing)),
        *record.bulk.chunks,
    ]
    return script_keys, args


def _round_keys(names: SessionKeys, number: int) -> list[str]:
    oldest = names.closed_round(max(0, number - keys.KEPT_ROUNDS))
    here = names.closed_round(number)
    return [names.round, names.pending, names.counted, names.garbage, names.evaluations, here, oldest]


def _round_arguments(closing: RoundClosing) -> Arguments:
    return [
        *(closing.token, serialization.summed(closing.document), serialization.dumps(closing.counted)),
        *(closing.oldest, serialization.dumps(closing.config)),
        "" if closing.clip_norm is None else repr(closing.clip_norm),
    ]


def failure(error: ResponseError) -> AdamdError | UnknownOutcome:
    """Return the error for a commit's error answer: it did not happen, or nobody knows how far it came."""
    return UnknownOutcome(str(error)) if in_the_middle(error) else refused(error)
