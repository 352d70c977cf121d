"""Tests that cannot fail are defects: each line of the Lua scripts that guards something is taken out, and must be missed.

A row: script, what stands there, what is put in its place, and the check of guards.py that goes red by it.
"""

import hashlib
from importlib import resources

import pytest

from adamd.errors import AdamdError, InternalError
from adamd_service.store import chunks, garbage, index, redis_store, scripts
from adamd_service.store.scripts import Script

from . import guards, guards_damage, guards_sessions

PERSIST = "  redis.call('PERSIST', KEYS[i"
GUARDS = [
    ("commit", "head[1] ~= ARGV[2] or ", "", "commit_compares_the_incarnation"),
    ("commit", "head[2] ~= ARGV[3] or ", "", "commit_compares_the_chain"),
    ("commit", "head[3] ~= ARGV[4] or ", "", "commit_compares_the_step"),
    ("commit", "head[4] ~= ARGV[5] or ", "", "commit_compares_the_revision"),
    ("commit", " or head[5] ~= '0'", "", "commit_wants_parameters"),
    (
        *("commit", "if redis.call('STRLEN', KEYS[i - 14]) ~= tonumber(ARGV[i])", "if false"),
        "commit_wants_every_chunk",
    ),
    (
        *(
            "commit",
            "redis.call('STRLEN', KEYS[i - 14]) ~= tonumber(ARGV[i])",
            "redis.call('EXISTS', KEYS[i - 14]) == 0",
        ),
        "commit_wants_every_byte",
    ),
    ("commit", "redis.call('EXISTS', KEYS[4]) == 1", "false", "commit_respects_the_fence"),
    ("commit", "redis.call('HGET', KEYS[3], 'attempt') == ARGV[9]", "false", "commit_knows_its_attempt"),
    ("commit", "if known then", "if false then", "commit_knows_a_key"),
    ("commit", "  redis.call('SET', KEYS[5], ARGV[16], 'EX', ARGV[17])\n", "", "commit_knows_a_key"),
    ("commit", ", 'EX', ARGV[17]", "", "commit_knows_a_key"),
    ("commit", "  redis.call('PERSIST', KEYS[i - 14])\n", "", "commit_makes_chunks_permanent"),
    (
        *(
            "commit",
            "redis.call('HSET', KEYS[3], 'meta'",
            "redis.call('DEL', KEYS[4])\nredis.call('HSET', KEYS[3], 'meta'",
        ),
        "commit_is_refused_whole_by_a_full_store",
    ),
    ("commit", "redis.call('HSET', KEYS[2], ARGV[7], ARGV[8])\n", "", "commit_moves_everything"),
    ("commit", ", 'prev_chain', ARGV[3]", "", "commit_moves_everything"),
    ("commit", ", 'log_bytes', logged", "", "commit_moves_everything"),
    ("commit", ", 'settings_revision', ARGV[14]", "", "commit_moves_everything"),
    ("commit", ", 'sealed', ARGV[19]", "", "commit_seals_the_settings"),
    ("commit", "redis.call('HLEN', KEYS[2])\n", "", "commit_is_whole_or_not_at_all"),
    (
        "commit",
        "logged and logged >= 0 and logged < 2^53 and logged or 0",
        "(logged or 0)",
        "commit_counts_the_log_anew",
    ),
    (
        "commit",
        "redis.call('HSET', KEYS[1], 'progress', string.sub(ARGV[18], 17), 'progressed', string.sub(ARGV[18], 1, 16))",
        "do end",
        "commit_keeps_progress",
    ),
    ("commit", "'chain', ARGV[10], 'inline'", "'inline'", "commit_moves_everything"),
    ("resolve", "attempt == ARGV[2]", "false", "resolve_finds_a_commit"),
    ("resolve", "moved and attempt", "attempt", "a_record_without_its_head_is_no_commit"),
    (
        "commit",
        " and (tonumber(head[3] or '') or -1) >= tonumber(ARGV[6])",
        "",
        "a_record_without_its_head_is_written_again",
    ),
    ("resolve", "if not attempt then", "if false then", "resolve_says_what_it_cannot_know"),
    ("resolve", "redis.call('SET', KEYS[3], '1', 'EX', ARGV[4])\n", "", "resolve_fences_for_a_day"),
    ("resolve", ", 'EX', ARGV[4]", "", "resolve_fences_for_a_day"),
    ("resolve", "if not attempt then", "if true then", "resolve_fences_for_a_day"),
    ("resolve", "redis.call('DEL', KEYS[3])\n", "", "resolve_works_in_a_full_store"),
    ("snapshot", "if head[1] ~= ARGV[2] then", "if false then", "snapshot_compares_the_incarnation"),
    ("snapshot", "redis.call('HGET', KEYS[2], 'chain') ~= ARGV[3] or ", "", "snapshot_compares_the_chain"),
    ("snapshot", "newest.step >= snapshot.step", "false", "snapshot_never_goes_back"),
    ("snapshot", "known.id == snapshot.id", "false", "snapshot_knows_itself"),
    ("snapshot", "if redis.call('STRLEN', KEYS[i - 3]) ~= tonumber(ARGV[i])", "if false", "snapshot_wants_every_chunk"),
    ("snapshot", "redis.call('LLEN', KEYS[3])\n", "", "snapshot_is_whole_or_not_at_all"),
    ("snapshot", "string.sub(head[2], -#text - 1) ~= text .. ']'", "false", "snapshot_looks_at_the_newest"),
    ("snapshot", "newest.id ~= ARGV[6] or ", "", "snapshot_replaces_a_damaged_one"),
    ("snapshot", "kept, unnamed = string.sub(head[2], 2, -#text - 3), newest", "", "snapshot_replaces_a_damaged_one"),
    ("snapshot", f"{PERSIST}])\n", "", "snapshot_makes_chunks_permanent"),
    ("snapshot", "#snapshots > 1 and snapshots[1]", "nil", "snapshot_unnames_what_it_replaces"),
    ("snapshot", "if not replaced and newest.step >= first then", "if false then", "snapshot_unnames_what_it_replaces"),
    ("snapshot", "  first = newest.step + 1\n", "", "snapshot_unnames_what_it_replaces"),
    ("snapshot", "logged - tonumber(ARGV[5])", "logged", "snapshot_unnames_what_it_replaces"),
    ("snapshot", ", 'newest', ARGV[4],", ",", "snapshot_unnames_what_it_replaces"),
    ("create", "if redis.call('EXISTS', KEYS[2]) == 1 then", "if false then", "creating_stops_at_a_tombstone"),
    ("create", "if known then", "if false then", "creating_never_replaces_a_session"),
    ("create", "known == ARGV[2] and 'created' or 'taken'", "'taken'", "creating_never_replaces_a_session"),
    ("create", "if redis.call('STRLEN', KEYS[i - fields - 1]) ~=", "if 1 ==", "creating_wants_every_chunk"),
    ("create", f"{PERSIST}])\n", "", "creating_makes_chunks_permanent"),
    ("parameters", "if head[1] ~= ARGV[2] then", "if false then", "putting_compares_the_incarnation"),
    ("parameters", "head[2] ~= ARGV[3] or ", "", "putting_compares_the_chain"),
    ("parameters", "known.id == cjson.decode(ARGV[6]).id", "false", "putting_knows_itself"),
    ("parameters", " or head[3] ~= '0'", "", "putting_stops_at_step_1"),
    ("parameters", f"{PERSIST}])\n", "", "putting_makes_chunks_permanent"),
    ("parameters", ", 'parameters_missing', '0'", "", "putting_makes_chunks_permanent"),
    (
        "parameters",
        "ipairs(unnamed) do\n  redis.call('RPUSH'",
        "ipairs({}) do\n  redis.call('RPUSH'",
        "putting_unnames_what_it_replaces",
    ),
    ("parameters", "redis.call('LLEN', KEYS[2])\n", "", "putting_is_whole_or_not_at_all"),
    ("patch", "head[1] ~= ARGV[2] or ", "", "patching_compares_the_incarnation"),
    ("patch", "return {ARGV[1], 'damaged'}", "do end", "patching_wants_a_step"),
    ("patch", ", 'sealed', ARGV[8]", "", "patching_seals_the_settings"),
    ("patch", " or head[2] ~= ARGV[3]", "", "patching_compares_the_revision"),
    ("patch", " or (ARGV[7] ~= '' and head[4] ~= ARGV[7])", "", "patching_compares_the_chain_if_asked"),
    ("delete", "head[4] ~= ARGV[5]", "false", "deleting_compares_the_chain_if_asked"),
    (
        "delete",
        "redis.call('DEL', KEYS[1], KEYS[4], KEYS[5])\nredis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])\n",
        "redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[2])\nredis.call('DEL', KEYS[1], KEYS[4], KEYS[5])\n",
        "deleting_works_in_a_full_store",
    ),
    (
        "delete",
        "if kind ~= 'none' and ARGV[4] == 'absent' then",
        "if false then",
        "fencing_spares_a_session_that_has_come",
    ),
    ("claim", "if owner and owner ~= ARGV[2] then", "if false then", "a_name_is_claimed_once"),
    ("claim", "if known and known ~= ARGV[5] .. ' ' .. ARGV[2] then", "if false then", "a_key_is_claimed_once"),
    ("claim", "redis.call('SET', KEYS[5], '1', 'PX', ARGV[7])\n", "", "a_claim_under_way_is_left_alone"),
    ("claim", ", 'PX', ARGV[7]", "", "a_claim_under_way_is_left_alone"),
    ("claim", "if owner and owner ~= ARGV[2] then", "if owner then", "a_claim_under_way_is_left_alone"),
    ("claim", "  redis.call('DEL', KEYS[3])\n", "", "a_name_that_is_used_again_is_not_gone"),
    ("release", "redis.call('HGET', KEYS[1], ARGV[3]) == ARGV[2]", "true", "releasing_spares_what_is_another_ones"),
    (
        "release",
        "redis.call('GET', KEYS[4]) == ARGV[5] .. ' ' .. ARGV[2]",
        "true",
        "releasing_spares_what_is_another_ones",
    ),
    ("release", "redis.call('SET', KEYS[3], ARGV[2], 'EX', ARGV[4])", "", "deleting_works_in_a_full_store"),
    ("lease", "redis.call('ZADD', KEYS[1], now, ARGV[2])\n", "", "a_lease_holds_garbage_back"),
    ("lease", "redis.call('EXPIRE', KEYS[1], ARGV[3])\n", "", "a_lease_holds_garbage_back"),
    (
        "lease",
        "redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now - tonumber(ARGV[3])))\n",
        "",
        "reading_works_in_a_full_store",
    ),
    ("collect", "if oldest and at and at >= oldest then", "if false then", "a_lease_holds_garbage_back"),
    ("collect", "at >= oldest", "at > oldest", "a_lease_of_the_same_second_holds_it_back_too"),
    ("collect", "readable and type(garbage) == 'table' and ", "", "damaged_garbage_stops_nothing"),
    ("unlink", "if not redis.call('LPOS', KEYS[2], ARGV[2]) then", "if false then", "unlinking_wants_the_entry"),
    (
        "unlink",
        "not string.find(head[1], '\"' .. ARGV[4] .. '\"', 1, true)",
        "true",
        "unlinking_spares_a_named_snapshot",
    ),
    ("unlink", "first and last and last < first", "true", "unlinking_spares_named_records"),
    ("unlink", "attempt and attempt ~= ARGV[i]", "false", "unlinking_compares_the_attempt"),
    ("unlink", "redis.call('LREM', KEYS[2], 1, ARGV[2])\n", "", "damaged_garbage_stops_nothing"),
    ("unlink", "redis.call('RPUSH', KEYS[2], ARGV[5])\n", "", "damaged_garbage_goes_with_its_session"),
    ("unlink", "  redis.call('UNLINK', KEYS[i])\n", "", "snapshot_unnames_what_it_replaces"),
    ("discard", "redis.call('PTTL', KEYS[i]) >= 0", "true", "discarding_spares_what_is_named"),
    ("delete", "if kind == 'hash' then", "if true then", "a_damaged_head_can_be_deleted"),
    ("delete", "ARGV[6] == 'damaged' or ", "", "a_damaged_head_can_be_deleted"),
    ("delete", "if spoiled then", "if false then", "deleting_is_whole_or_not_at_all"),
    (
        "release",
        "local mine = ARGV[3] ~= '' and",
        "redis.call('ZREM', KEYS[2], ARGV[2])\nlocal mine = ARGV[3] ~= '' and",
        "releasing_is_whole_or_not_at_all",
    ),
    (
        "claim",
        "redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[8]) and not redis.call('ZSCORE', KEYS[2], ARGV[2])",
        "false",
        "claiming_is_whole_or_not_at_all",
    ),
    (
        "collect",
        "redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. (now - tonumber(ARGV[2])))\n",
        "",
        "a_lease_that_nobody_gave_back_ends",
    ),
]
HELP = ("full", "key_of", "refused", "_put", "whole_or_nothing", "stripped", "_listed_then", "_back_to")
CHECKS = {
    name: check
    for module in (guards, guards_damage, guards_sessions)
    for name, check in vars(module).items()
    if getattr(check, "__module__", "") == module.__name__ and name not in HELP
}


def replace_script(monkeypatch, name, text):
    """Let the store use ``text`` where it would use the script ``name``."""
    changed = Script(text, hashlib.sha1(text.encode()).hexdigest())
    for module in (redis_store, index, garbage, chunks):
        monkeypatch.setattr(module, "script", lambda asked: changed if asked == name else scripts.script(asked))


@pytest.mark.parametrize("check", CHECKS)
def test_a_guard_holds(store, client, check):
    CHECKS[check](store, client)


@pytest.mark.parametrize(
    ("name", "there", "instead", "check"), GUARDS, ids=[f"{g[0]}-{n}" for n, g in enumerate(GUARDS)]
)
def test_a_guard_that_is_taken_out_is_missed(store, client, monkeypatch, name, there, instead, check):
    text = scripts.script(name).text
    assert text.count(there) == 1, "the row names one place of the script, or it proves nothing"
    replace_script(monkeypatch, name, text.replace(there, instead))
    with pytest.raises((AssertionError, pytest.fail.Exception, AdamdError)) as red:
        CHECKS[check](store, client)
    assert red.type is not InternalError, f"the row breaks the script, instead of a guard: {red.value}"


def test_every_script_is_in_the_table_and_every_check_is_used():
    there = {p.name for p in resources.files("adamd_service.store").joinpath("lua").iterdir()}
    assert there == {f"{name}.lua" for name, *_ in GUARDS}
    assert set(CHECKS) == {check for *_, check in GUARDS}
