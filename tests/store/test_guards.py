"""Takes out each guarding line of the Lua scripts: a check must go red.

A row: script, what stands there, what is put in its place, and the check of guards.py that goes red by it.
"""

import hashlib
from importlib import resources

import pytest

from adamd.errors import AdamdError, InternalError
from adamd_service.store import chunks, garbage, index, redis_store, rounds, scripts, snapshots
from adamd_service.store.bulk import notes
from adamd_service.store.scripts import Script

from . import guards, guards_damage, guards_rounds, guards_sessions, guards_shared

PERSIST = "  redis.call('PERSIST', KEYS[keys_before_chunks + i"
TOKEN = "bulk_token ~= '' and redis.call('GET', bulk_key) ~= bulk_token"
GUARDS = [
    ("commit", "incarnation ~= expected_incarnation or ", "", "commit_compares_the_incarnation"),
    ("commit", "head_chain ~= expected_chain or ", "", "commit_compares_the_chain"),
    ("commit", " or head_step ~= expected_step", "", "commit_compares_the_step"),
    ("commit", "head_revision ~= expected_revision or ", "", "commit_compares_the_revision"),
    ("commit", " or parameters_missing ~= '0'", "", "commit_wants_parameters"),
    (
        *(
            "commit",
            "if redis.call('STRLEN', KEYS[keys_before_chunks + i]) ~= tonumber(ARGV[args_before_chunks + i])",
            "if false",
        ),
        "commit_wants_every_chunk",
    ),
    (
        *(
            "commit",
            "redis.call('STRLEN', KEYS[keys_before_chunks + i]) ~= tonumber(ARGV[args_before_chunks + i])",
            "redis.call('EXISTS', KEYS[keys_before_chunks + i]) == 0",
        ),
        "commit_wants_every_byte",
    ),
    ("commit", "redis.call('EXISTS', fence_key) == 1", "false", "commit_respects_the_fence"),
    ("commit", "redis.call('HGET', record_key, 'attempt') == attempt", "false", "commit_knows_its_attempt"),
    ("commit", "if known then", "if false then", "commit_knows_a_key"),
    (
        "commit",
        "  redis.call('SET', idempotency_key, idempotency, 'EX', idempotency_seconds)\n",
        "",
        "commit_knows_a_key",
    ),
    ("commit", ", 'EX', idempotency_seconds", "", "commit_knows_a_key"),
    ("commit", "  redis.call('PERSIST', KEYS[keys_before_chunks + i])\n", "", "commit_makes_chunks_permanent"),
    (
        *(
            "commit",
            "redis.call('HSET', record_key, 'meta'",
            "redis.call('DEL', fence_key)\nredis.call('HSET', record_key, 'meta'",
        ),
        "commit_is_refused_whole_by_a_full_store",
    ),
    ("commit", "redis.call('HSET', ring_key, ring_slot, ring_entry)\n", "", "commit_moves_everything"),
    ("commit", ", 'prev_chain', expected_chain", "", "commit_moves_everything"),
    ("commit", ", 'log_bytes', logged", "", "commit_moves_everything"),
    ("commit", ", 'settings_revision', revision", "", "commit_moves_everything"),
    ("commit", ", 'sealed', seal", "", "commit_seals_the_settings"),
    ("commit", "redis.call('HLEN', ring_key)\n", "", "commit_is_whole_or_not_at_all"),
    (
        "commit",
        "logged and logged >= 0 and logged < 2^53 and logged or 0",
        "(logged or 0)",
        "commit_counts_the_log_anew",
    ),
    (
        "commit",
        "redis.call('HSET', head_key, 'progress', string.sub(progress, 17), 'progressed', string.sub(progress, 1, 16))",
        "do end",
        "commit_keeps_progress",
    ),
    ("commit", "'chain', chain, 'inline'", "'inline'", "commit_moves_everything"),
    ("resolve", "recorded_attempt == attempt", "false", "resolve_finds_a_commit"),
    ("resolve", "head_moved and recorded_attempt", "recorded_attempt", "a_record_without_its_head_is_no_commit"),
    (
        "commit",
        " and (tonumber(head_step or '') or -1) >= tonumber(step)",
        "",
        "a_record_without_its_head_is_written_again",
    ),
    ("resolve", "if not recorded_attempt then", "if false then", "resolve_says_what_it_cannot_know"),
    ("resolve", "redis.call('SET', fence_key, '1', 'EX', fence_seconds)\n", "", "resolve_fences_for_a_day"),
    ("resolve", ", 'EX', fence_seconds", "", "resolve_fences_for_a_day"),
    ("resolve", "if not recorded_attempt then", "if true then", "resolve_fences_for_a_day"),
    ("resolve", "redis.call('DEL', fence_key)\n", "", "resolve_works_in_a_full_store"),
    ("snapshot", "if incarnation ~= expected_incarnation then", "if false then", "snapshot_compares_the_incarnation"),
    ("snapshot", "redis.call('HGET', record_key, 'chain') ~= chain or ", "", "snapshot_compares_the_chain"),
    ("snapshot", "newest.step >= snapshot.step", "false", "snapshot_never_goes_back"),
    ("snapshot", "known.id == snapshot.id", "false", "snapshot_knows_itself"),
    ("snapshot", "if redis.call('STRLEN', KEYS[keys_before_chunks + i]) ~=", "if 1 ==", "snapshot_wants_every_chunk"),
    ("snapshot", "redis.call('LLEN', garbage_key)\n", "", "snapshot_is_whole_or_not_at_all"),
    (
        "snapshot",
        "string.sub(snapshots_text, -#newest_text - 1) ~= newest_text .. ']'",
        "false",
        "snapshot_looks_at_the_newest",
    ),
    ("snapshot", "newest.id ~= damaged_id or ", "", "snapshot_replaces_a_damaged_one"),
    (
        "snapshot",
        "kept_text, dropped = string.sub(snapshots_text, 2, -#newest_text - 3), newest",
        "",
        "snapshot_replaces_a_damaged_one",
    ),
    ("snapshot", f"{PERSIST}])\n", "", "snapshot_makes_chunks_permanent"),
    ("snapshot", "#snapshots > 1 and snapshots[1]", "nil", "snapshot_unnames_what_it_replaces"),
    ("snapshot", "if not replaces and newest.step >= first then", "if false then", "snapshot_unnames_what_it_replaces"),
    ("snapshot", "  first = newest.step + 1\n", "", "snapshot_unnames_what_it_replaces"),
    ("snapshot", "logged - covered_bytes", "logged", "snapshot_unnames_what_it_replaces"),
    ("snapshot", ", 'newest', snapshot_text,", ",", "snapshot_unnames_what_it_replaces"),
    ("create", "if redis.call('EXISTS', tombstone_key) == 1 then", "if false then", "creating_stops_at_a_tombstone"),
    ("create", "if known then", "if false then", "creating_never_replaces_a_session"),
    ("create", "known == incarnation and 'created' or 'taken'", "'taken'", "creating_never_replaces_a_session"),
    ("create", "if redis.call('STRLEN', KEYS[keys_before_chunks + i]) ~=", "if 1 ==", "creating_wants_every_chunk"),
    ("create", f"{PERSIST}])\n", "", "creating_makes_chunks_permanent"),
    ("parameters", "if incarnation ~= expected_incarnation then", "if false then", "putting_compares_the_incarnation"),
    ("parameters", "head_chain ~= expected_chain or ", "", "putting_compares_the_chain"),
    ("parameters", "known.id == cjson.decode(snapshot_text).id", "false", "putting_knows_itself"),
    ("parameters", " or step ~= '0'", "", "putting_stops_at_step_1"),
    ("parameters", f"{PERSIST}])\n", "", "putting_makes_chunks_permanent"),
    ("parameters", ",\n  'parameters_missing', '0'", "", "putting_makes_chunks_permanent"),
    (
        "parameters",
        "ipairs(replaced) do\n  redis.call('RPUSH'",
        "ipairs({}) do\n  redis.call('RPUSH'",
        "putting_unnames_what_it_replaces",
    ),
    ("parameters", "redis.call('LLEN', garbage_key)\n", "", "putting_is_whole_or_not_at_all"),
    ("patch", "incarnation ~= expected_incarnation or ", "", "patching_compares_the_incarnation"),
    ("patch", "return {nonce, 'damaged'}", "do end", "patching_wants_a_step"),
    ("patch", ", 'sealed', seal", "", "patching_seals_the_settings"),
    ("patch", " or head_revision ~= expected_revision", "", "patching_compares_the_revision"),
    ("patch", "\n  or (expected_chain ~= '' and chain ~= expected_chain)", "", "patching_compares_the_chain_if_asked"),
    ("delete", "chain ~= expected_chain", "false", "deleting_compares_the_chain_if_asked"),
    (
        "delete",
        "redis.call('DEL', head_key, ring_key,",
        "redis.call('SET', tombstone_key, tombstone)\nredis.call('DEL', head_key, ring_key,",
        "deleting_works_in_a_full_store",
    ),
    (
        "delete",
        "if exists and mode == 'absent' then",
        "if false then",
        "fencing_spares_a_session_that_has_come",
    ),
    ("claim", "if owner and owner ~= id then", "if false then", "a_name_is_claimed_once"),
    ("claim", "if known and known ~= idempotency then", "if false then", "a_key_is_claimed_once"),
    ("claim", "redis.call('SET', claim_key, '1', 'PX', creation_ms)\n", "", "a_claim_under_way_is_left_alone"),
    ("claim", ", 'PX', creation_ms", "", "a_claim_under_way_is_left_alone"),
    ("claim", "if owner and owner ~= id then", "if owner then", "a_claim_under_way_is_left_alone"),
    ("claim", "  redis.call('DEL', former_key)\n", "", "a_name_that_is_used_again_is_not_gone"),
    ("release", "redis.call('HGET', names_key, name) == id", "true", "releasing_spares_what_is_another_ones"),
    (
        "release",
        "redis.call('GET', idempotency_key) == digest .. ' ' .. id",
        "true",
        "releasing_spares_what_is_another_ones",
    ),
    ("release", "redis.call('SET', former_key, id, 'EX', former_seconds)", "", "deleting_works_in_a_full_store"),
    ("lease", "redis.call('ZADD', readers_key, now, lease)\n", "", "a_lease_holds_garbage_back"),
    ("lease", "redis.call('EXPIRE', readers_key, lease_seconds)\n", "", "a_lease_holds_garbage_back"),
    (
        "lease",
        "redis.call('ZREMRANGEBYSCORE', readers_key, '-inf', '(' .. (now - tonumber(lease_seconds)))\n",
        "",
        "a_lease_begins_in_a_full_store",
    ),
    ("collect", "if oldest_reader and at and at >= oldest_reader then", "if false then", "a_lease_holds_garbage_back"),
    ("collect", "at >= oldest_reader", "at > oldest_reader", "a_lease_of_the_same_second_holds_it_back_too"),
    ("collect", "decoded and type(garbage) == 'table' and ", "", "damaged_garbage_stops_nothing"),
    ("unlink", "if not redis.call('LPOS', garbage_key, entry) then", "if false then", "unlinking_wants_the_entry"),
    (
        "unlink",
        "not string.find(snapshots_text, '\"' .. name .. '\"', 1, true)",
        "true",
        "unlinking_spares_a_named_snapshot",
    ),
    ("unlink", "first and last and last < first", "true", "unlinking_spares_named_records"),
    ("unlink", "attempt and attempt ~= ARGV[args_before_attempts + i]", "false", "unlinking_compares_the_attempt"),
    ("unlink", "redis.call('LREM', garbage_key, 1, entry)\n", "", "damaged_garbage_stops_nothing"),
    ("unlink", "redis.call('RPUSH', garbage_key, outcome)\n", "", "damaged_garbage_goes_with_its_session"),
    ("unlink", "  redis.call('UNLINK', KEYS[i])\n", "", "snapshot_unnames_what_it_replaces"),
    ("discard", "redis.call('PTTL', chunk_key) >= 0", "true", "discarding_spares_what_is_named"),
    ("delete", "if head_type == 'hash' then", "if true then", "a_damaged_head_can_be_deleted"),
    ("delete", "(damaged or type", "(type", "a_damaged_head_can_be_deleted"),
    ("delete", "if garbage_damaged then", "if false then", "deleting_is_whole_or_not_at_all"),
    (
        "release",
        "local owns_name = name ~= '' and",
        "redis.call('ZREM', sessions_key, id)\nlocal owns_name = name ~= '' and",
        "releasing_is_whole_or_not_at_all",
    ),
    (
        "claim",
        "redis.call('ZCARD', sessions_key) >= max_sessions and not redis.call('ZSCORE', sessions_key, id)",
        "false",
        "claiming_is_whole_or_not_at_all",
    ),
    ("commit", TOKEN, "false", "a_later_start_lets_no_step_through"),
    ("snapshot", TOKEN, "false", "a_later_start_lets_no_snapshot_through"),
    ("parameters", TOKEN, "false", "a_later_start_lets_no_parameters_through"),
    ("create", TOKEN, "false", "a_later_start_lets_no_creation_through"),
    ("delete", "readers_key, bulk_key, round_key, p", "readers_key, round_key, p", "a_deleted_session_leaves_no_token"),
    ("contribute", "incarnation ~= expected_incarnation", "false", "a_contribution_compares_the_incarnation"),
    ("contribute", "if known then", "if false then", "a_client_contributes_once"),
    ("contribute", "own and 'accepted' or 'duplicate'", "'duplicate'", "a_client_contributes_once"),
    (
        "contribute",
        "string.find(known, '\"digest\":\"' .. digest .. '\"', 1, true)",
        "true",
        "another_contribution_is_a_conflict",
    ),
    ("contribute", "if round > open then", "if false then", "a_later_round_is_ahead"),
    ("contribute", "if counted or round", "if round", "what_was_counted_is_not_taken_again"),
    ("contribute", "round < open - most_behind", "false", "an_earlier_round_is_closed"),
    ("contribute", "(token and (not goes_on or", "(false and (not goes_on or", "a_frozen_round_takes_nothing"),
    ("contribute", "not goes_on or open == last_round", "not goes_on", "the_last_round_takes_nothing_for_another"),
    ("contribute", "last_round ~= 0 and open > last_round", "false", "after_the_last_round_nothing_is_taken"),
    ("contribute", "last_round ~= 0", "last_round > 0", "where_no_round_is_allowed_nothing_is_taken"),
    ("parameters", "redis.call('HLEN', pending_key) > 0", "false", "parameters_stay_where_contributions_wait"),
    ("contribute", "if is_drawn and not", "if false and not", "only_who_is_asked_contributes"),
    ("contribute", "received >= most then", "false then", "a_round_takes_so_many"),
    ("contribute", TOKEN, "false", "a_later_start_lets_no_contribution_through"),
    (
        "contribute",
        "redis.call('STRLEN', KEYS[keys_before_chunks + i]) ~= tonumber(ARGV[args_before_chunks + i])",
        "false",
        "a_contribution_wants_every_byte",
    ),
    ("contribute", f"{PERSIST}])\n", "", "a_contributions_chunks_stay"),
    ("contribute", "if received == 0 then", "if false then", "the_deadline_counts_from_the_first"),
    ("contribute", "if knows then", "if false then", "who_contributes_is_known"),
    (
        "contribute",
        "redis.call('HSET', pending_key, member, contribution)\n",
        "redis.call('DEL', clients_key)\nredis.call('HSET', pending_key, member, contribution)\n",
        "a_contribution_is_refused_whole_by_a_full_store",
    ),
    ("standing", "if not incarnation then", "if false then", "a_round_of_no_session_is_not_told"),
    ("standing", "all and redis.call('HGETALL', pending_key) or {}", "{}", "everything_is_told_at_once"),
    ("standing", "all and redis.call('HGETALL', evaluations_key) or {}", "{}", "everything_is_told_at_once"),
    ("clock", "known_number ~= number or ", "", "the_time_of_another_round_stays"),
    (
        "clock",
        "(tonumber(first_at or '') or 0) <= tonumber(time[1]) + tonumber(time[2]) / 1e6",
        "false",
        "a_time_that_has_come_stays",
    ),
    ("clock", "redis.call('HSET', round_key, 'first_at'", "redis.call('HGET', round_key", "a_clock_that_went_back"),
    ("meet", "incarnation ~= expected_incarnation", "false", "a_meeting_compares_the_incarnation"),
    ("meet", ">= most_clients then", ">= 1e9 then", "a_session_knows_so_many_clients"),
    ("meet", "if redis.call('HGET', round_key, 'number') ~= number then", "if true then", "a_round_opens_once"),
    ("draw", "  or round_tries ~= tries", "", "a_drawing_is_of_one_try"),
    ("draw", " or round_number ~= number\n", "\n", "a_drawing_is_of_one_round"),
    ("draw", "if not drawn then", "if true then", "the_first_drawing_counts"),
    ("freeze", "incarnation ~= expected_incarnation or ", "", "freezing_compares_the_history"),
    ("freeze", " or tonumber(step) + 1 ~= tonumber(round)", "", "freezing_compares_the_history"),
    ("freeze", "#members < least or ", "", "freezing_needs_so_many"),
    ("freeze", "if why == 'deadline'", "if false", "freezing_waits_for_the_deadline"),
    ("freeze", "if known_token then", "if false then", "a_round_is_frozen_once"),
    ("cancel", "incarnation ~= expected_incarnation or ", "", "cancelling_compares_the_history"),
    ("cancel", " or tonumber(step) + 1 ~= tonumber(round)", "", "cancelling_compares_the_history"),
    ("cancel", "if known_call == call then", "if false then", "cancelling_twice_drops_once"),
    ("cancel", "redis.call('DEL', evaluations_key, round_key)\n", "", "what_is_cancelled_is_garbage"),
    ("cancel", "  redis.call('HDEL', pending_key, member)\n", "", "what_is_cancelled_is_garbage"),
    ("cancel", "  if texts[i] then\n", "  if false then\n", "what_is_cancelled_is_garbage"),
    ("cancel", " and token ~= expected_token", " and false", "a_failure_is_of_one_freezing"),
    (
        *("cancel", "expected_token ~= '' and cjson.decode(members) or ", ""),
        "what_came_while_a_round_failed_waits_for_its_next_try",
    ),
    ("cancel", ", 'failure', failure)", ")", "a_failure_is_told"),
    ("evaluate", "incarnation ~= expected_incarnation", "false", "an_evaluation_compares_the_history"),
    ("evaluate", "if round ~= open then", "if false then", "an_evaluation_compares_the_history"),
    ("evaluate", "if known then", "if false then", "a_client_evaluates_once"),
    ("evaluate", "if received >= most then", "if false then", "a_round_takes_so_many_evaluations"),
    ("commit", "token ~= round_token", "false", "a_closing_compares_the_freezing"),
    ("commit", "  redis.call('HLEN', pending_key)\n", "", "a_closing_is_whole_or_not_at_all"),
    ("commit", "  redis.call('HLEN', counted_key)\n", "", "a_closing_is_whole_or_not_at_all"),
    ("commit", "  redis.call('LLEN', garbage_key)\n", "", "a_closing_is_whole_or_not_at_all"),
    ("commit", "    redis.call('HDEL', pending_key, member)\n", "", "a_closing_moves_everything"),
    (
        "commit",
        "redis.call('DEL', evaluations_key, old_key, round_key)",
        "redis.call('DEL', old_key, round_key)",
        "a_closing_moves_everything",
    ),
    (
        "commit",
        "redis.call('DEL', evaluations_key, old_key, round_key)",
        "redis.call('DEL', evaluations_key, old_key)",
        "a_closing_moves_everything",
    ),
    (
        "commit",
        "redis.call('DEL', evaluations_key, old_key, round_key)",
        "redis.call('DEL', evaluations_key, round_key)",
        "old_documents_go",
    ),
    ("commit", "    if contribution then\n", "    if false then\n", "a_closing_moves_everything"),
    (
        "commit",
        "    redis.call('HSET', counted_key, member, counted[member] or '')\n",
        "",
        "a_closing_moves_everything",
    ),
    ("commit", "  redis.call('SET', document_key, document)\n", "", "a_closing_moves_everything"),
    ("commit", "      redis.call('HDEL', counted_key, member)\n", "", "who_was_counted_is_forgotten_later"),
    (
        "commit",
        "redis.call('HLEN', pending_key) > 0 and now or ''",
        "''",
        "what_comes_while_a_round_closes_waits_for_the_next",
    ),
    (
        "unlink",
        "member and not string.find(waits, '\"attempt\":\"' .. attempt .. '\"', 1, true)",
        "true",
        "a_contribution_that_waits_is_no_garbage",
    ),
    ("delete", "for i = 1, #waiting, 2 do", "for i = 1, 0 do", "a_deleted_session_leaves_nothing_of_its_rounds"),
    (
        "delete",
        "if redis.call('EXISTS', round_key) == 1 then",
        "if false then",
        "a_deleted_session_leaves_nothing_of_its_rounds",
    ),
    (
        "delete",
        "pending_key, counted_key, clients_key,\n",
        "pending_key, clients_key,\n",
        "a_deleted_session_leaves_nothing_of_its_rounds",
    ),
    ("bulk_claim", "known ~= expected or ", "", "one_claim_of_two_counts"),
    ("bulk_claim", "if known == identity then", "if false then", "one_claim_of_two_counts"),
    (
        "bulk_claim",
        " or redis.call('SCARD', sessions_key) ~= count",
        "",
        "a_claim_wants_the_sessions_that_were_looked_at",
    ),
    (
        "bulk_expect",
        "redis.call('GET', identity_key) ~= identity",
        "false",
        "a_later_start_expects_no_session_of_an_earlier",
    ),
    (
        "bulk_expect",
        "redis.call('SADD', sessions_key, session)\n",
        "",
        "a_session_is_expected_before_it_has_an_extent",
    ),
    (
        "collect",
        "redis.call('ZREMRANGEBYSCORE', readers_key, '-inf', '(' .. (now - lease_seconds))\n",
        "",
        "a_lease_that_nobody_gave_back_ends",
    ),
]
HELP = (
    "full",
    "key_of",
    "refused",
    "_put",
    "whole_or_nothing",
    "stripped",
    "_listed_then",
    "_back_to",
    "owner",
    "taken_over",
    "with_rounds",
    "one_of",
    "said",
    "standing",
    "frozen",
    "_first_at",
    "closing_of",
    "closed",
    "_Tokens",
)
CHECKS = {
    name: check
    for module in (guards, guards_damage, guards_rounds, guards_sessions, guards_shared)
    for name, check in vars(module).items()
    if getattr(check, "__module__", "") == module.__name__ and name not in HELP
}


def replace_script(monkeypatch, name, text):
    """Let the store use ``text`` where it would use the script ``name``."""
    changed = Script(text, hashlib.sha1(text.encode()).hexdigest())
    for module in (redis_store, index, garbage, chunks, snapshots, notes, rounds):
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
