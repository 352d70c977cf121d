"""Takes out each guard of a law: the test that watches it must go red.

In a copy of the sources one guard is removed by an exact replacement, and the named test runs on the copy.
"""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from .warm import Warm

ROOT = Path(__file__).parents[2]
LAWS = "tests/engine/test_laws.py"
ENCODED = "tests/engine/test_engine_encodings.py"
ENGINE = "service/adamd_service/engine"
OPTIM = "service/adamd_service/optim"
LUA = "service/adamd_service/store/lua"
STORE = "service/adamd_service/store"
GRPC = "service/adamd_service/grpc"
DAMAGE = "tests/engine/test_damage.py"
AROUND = "tests/contract/test_contract_around.py"

# law, what is taken out, [(file, what stands there, what is put in its place)], the test that sees it
GUARDS = [
    (
        "2 a body is synced before its step is committed",
        [(f"{STORE}/bulk/files.py", "        if self._synced or fresh or is_cached(extent):\n", "        if False:\n")],
        "tests/store/bulk/test_simulation.py::test_what_is_committed_survives_every_crash",
    ),
    (
        "2 what a commit may have named is kept until its outcome is known",
        [(f"{STORE}/bulk/files.py", "            self._move_all(session_id, owner, STAGED, DOUBT)\n", "")],
        "tests/store/bulk/test_doubts.py::test_a_step_in_doubt_is_asked_for",
    ),
    (
        "1 an extent whose disk failed is not used again",
        [(f"{STORE}/bulk/files.py", "            self._disk.rename(extent, extent + RETIRED)\n", "            pass\n")],
        "tests/store/bulk/test_simulation.py::test_a_disk_that_fails_now_and_then_loses_nothing",
    ),
    (
        "1 a contribution's bytes are those that came",
        [(f"{ENGINE}/rounds/values.py", "if self._digest.hexdigest() != self._one.body_digest:\n", "if False:\n")],
        "tests/engine/rounds/test_closing.py::test_a_damaged_contribution_is_left_out",
    ),
    (
        "1 an aggregate with a damaged contribution is made again",
        [(f"{ENGINE}/rounds/values.py", "        if len(opened) < before:\n", "        if False:\n")],
        "tests/engine/rounds/test_homes.py::test_a_damaged_one_is_in_no_aggregate[files-delta-more0-changed]",
    ),
    (
        "4 a mean's norms and digests are found in order, by any threads",
        [
            (
                "service/adamd_service/aggregation/lanes.py",
                "        if self._next[thing] == part:\n",
                "        if True:\n",
            )
        ],
        "tests/aggregation/test_one_pass.py::test_turns_are_in_order_however_late_a_part_is",
    ),
    (
        "1 an extent that a contribution names is not free at the start",
        [(f"{STORE}/bulk/naming.py", ", *_of_contributions(session_id, waiting)]", "]")],
        "tests/engine/rounds/test_homes.py::test_a_crash_and_a_start[files-False]",
    ),
    (
        "1 what a step assigns is a part of its record",
        [(f"{ENGINE}/step.py", "            assigned=step.assigned,\n", "")],
        "tests/engine/rounds/test_tensors.py::test_each_tensor_by_its_rule",
    ),
    (
        "3 a contribution's digest covers its kind and its number of examples",
        [(f"{ENGINE}/rounds/contributing.py", "[body_digest, call.kind, call.num_examples]", "[body_digest]")],
        "tests/engine/rounds/test_contributing.py::test_the_same_again_is_a_duplicate_and_another_a_conflict",
    ),
    (
        "5 a round that was cancelled makes no step",
        [(f"{LUA}/commit.lua", "  if token ~= round_token or number ~= step then\n", "  if number ~= step then\n")],
        "tests/engine/rounds/test_closing.py::test_a_cancelled_round_makes_no_step",
    ),
    (
        "5 a replica goes on with the members that were frozen",
        [(f"{STORE}/rounds.py", "if one.member in wanted]", "]")],
        "tests/engine/rounds/test_buffered.py::test_what_comes_while_a_round_closes_waits_for_the_next",
    ),
    (
        "6 what cannot count is refused before its body is read",
        [(f"{ENGINE}/rounds/contributing.py", "        if error is not None:\n", "        if False:\n")],
        "tests/engine/rounds/test_closing.py::test_what_cannot_count_is_refused_before_its_body_is_read",
    ),
    (
        "1 no round is made beyond the last one",
        [(f"{ENGINE}/rounds/closing.py", "        if last is not None and number > last:\n", "        if False:\n")],
        "tests/engine/rounds/test_hostile.py::test_the_closer_itself_knows_the_last_round",
    ),
    (
        "7 a round that no try can make is not tried again",
        [(f"{ENGINE}/rounds/closing.py", "            if isinstance(error, HOPELESS):\n", "            if False:\n")],
        "tests/engine/rounds/test_failing.py::test_what_is_known_of_a_contribution_is_damaged",
    ),
    (
        "7 a round's document has a bound",
        [(f"{ENGINE}/rounds/aggregating.py", "reports.bounded(whole)", "whole")],
        "tests/engine/rounds/test_documents.py::test_who_tells_the_most_is_left_out_first",
    ),
    (
        "7 an aggregate that compares each two has a bound",
        [("service/adamd_service/rounds/settings.py", " and most > MOST_COMPARED:\n", " and False:\n")],
        "tests/rounds/test_round_settings.py::test_krum_compares_so_many_and_older_sessions_go_on",
    ),
    (
        "7 a clock that goes back keeps no round open",
        [(f"{STORE}/rounds.py", "if standing.first_at is not None and standing.now < standing.first_at:", "if False:")],
        "tests/engine/rounds/test_documents.py::test_a_clock_that_goes_back_moves_a_deadline_by_its_length_at_most",
    ),
    (
        "6 what is private is refused",
        [
            (
                f"{ENGINE}/rounds/contributing.py",
                "[names[place] for place in settings.private if place in present]",
                "[]",
            )
        ],
        "tests/http/test_http_rounds.py::test_private_tensors_stay_with_their_client",
    ),
    (
        "7 nobody's update stays on the disk",
        [(f"{STORE}/bulk/files.py", "                self._overwrite(extent, zeros)\n", "                pass\n")],
        "tests/engine/rounds/test_homes.py::test_nobodys_update_stays_on_the_disk",
    ),
    (
        "2 a look that began before a contribution came does not forget it",
        [(f"{ENGINE}/rounds/closing.py", "            self._again.add(session_id)", "            pass")],
        "tests/engine/rounds/test_closing.py::test_what_comes_during_a_look_is_looked_at",
    ),
    (
        "1 a reader is handed no extent of another's",
        [(f"{STORE}/bulk/files.py", "        if not own:\n", "        if False:\n")],
        "tests/store/bulk/test_doubts.py::test_a_reader_is_handed_no_extent_of_anothers",
    ),
    (
        "1 an older copy of the bulk directory is refused",
        [(f"{STORE}/bulk/directory.py", "    if here.generation < known.generation:\n", "    if False:\n")],
        "tests/store/bulk/test_contract.py::test_a_directory_that_is_not_the_stores_is_refused",
    ),
    (
        "1 one process has a bulk directory",
        [(f"{STORE}/bulk/directory.py", "            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "")],
        "tests/store/bulk/test_contract.py::test_a_directory_that_is_not_the_stores_is_refused",
    ),
    (
        "2 a snapshot in doubt is looked for twice",
        [(f"{STORE}/bulk/doubts.py", "        if not named and not doubt.looks:\n", "        if False:\n")],
        "tests/store/bulk/test_doubts.py::test_a_snapshot_in_doubt_is_given_up_at_the_second_look",
    ),
    (
        "7 a server starts on a full disk: its store is told nothing then",
        [
            (
                f"{STORE}/bulk/notes.py",
                "        if owed is None or self.is_full():\n",
                "        if owed is None:\n",
            )
        ],
        "tests/store/bulk/test_doubts.py::test_a_start_on_a_full_disk_writes_nothing_into_the_store",
    ),
    (
        "words for people reach a stream of any encoding",
        [("service/adamd_service/__main__.py", "    take_any_words()\n    app()", "    app()")],
        "tests/http/test_http_serving.py::test_the_ready_line_comes_in_any_encoding[ioencoding]",
    ),
    (
        "7 without a file descriptor the server is not ready",
        [(f"{ENGINE}/engine.py", "        if self.out_of_descriptors:\n", "        if False:\n")],
        "tests/http/test_http_serving.py::test_no_file_descriptor_left_is_told_and_over_when_there_are",
    ),
    (
        "1 a text without its own sum is refused",
        [
            (
                f"{STORE}/serialization.py",
                "if stored_sum is not None and stored_sum != sum_of(dumps(value)):",
                "if False:",
            )
        ],
        f"{DAMAGE}::test_every_bit_that_decides_is_under_a_sum[12]",
    ),
    (
        "1 the settings are the ones that were sealed",
        [(f"{STORE}/serialization.py", "if of > revision or (of == revision and not matches):", "if False:")],
        f"{DAMAGE}::test_every_bit_that_decides_is_under_a_sum[12]",
    ),
    (
        "1 the place in the ring is the one that was written",
        [(f"{STORE}/serialization.py", "if has_sum and stored_sum != _sum_of_entry(entry):", "if False:")],
        f"{DAMAGE}::test_every_bit_that_decides_is_under_a_sum[12]",
    ),
    (
        "1 what a session remembers of its steps is what was written",
        [
            (
                f"{STORE}/serialization.py",
                'if progress.startswith(" ") and text.get("progressed") != sum_of(progress):',
                "if False:",
            )
        ],
        "tests/store/test_codec.py::test_a_progress_that_the_version_before_wrote_is_read",
    ),
    (
        "2 a step that only resolve knows is not applied again",
        [(f"{ENGINE}/step.py", "            step.landed = number\n", "            pass\n")],
        "tests/engine/test_between_replicas.py::test_a_post_whose_key_was_not_kept_is_applied_once",
    ),
    (
        "1 the chain before the head's is the log's",
        [(f"{ENGINE}/rebuilding.py", "        self._check_before(head, last, before, reader)\n", "")],
        f"{DAMAGE}::test_every_bit_that_decides_is_under_a_sum[12]",
    ),
    (
        "1 a record's hash agrees with its text",
        [(f"{STORE}/serialization.py", "if stored is not None and stored.decode() != raw[name]:", "if False:")],
        f"{DAMAGE}::test_every_bit_that_decides_is_under_a_sum[12]",
    ),
    (
        "1 members that nobody wrote are refused",
        [(f"{STORE}/serialization.py", "    if not raw.keys() <= set(names):\n", "    if False:\n")],
        "tests/store/test_codec.py::test_a_sum_under_another_name_counts",
    ),
    (
        "1 an older snapshot serves where the newest is damaged",
        [(f"{ENGINE}/rebuilding.py", "in reversed(head.snapshots):", "in head.snapshots[-1:]:")],
        f"{DAMAGE}::test_an_older_snapshot_serves_where_the_newest_is_damaged[turned]",
    ),
    (
        "1 a new snapshot takes the place of the damaged one",
        [(f"{ENGINE}/snapshots.py", "        if loaded.replaced:\n            return True\n", "")],
        f"{DAMAGE}::test_an_older_snapshot_serves_where_the_newest_is_damaged[counts]",
    ),
    (
        "7 what is missing for good is not for later",
        [(f"{ENGINE}/rebuilding.py", "if _names_the_same(now, head):  #", "if False:  #")],
        f"{DAMAGE}::test_what_is_missing_for_good_is_damage_and_not_for_later[record:2]",
    ),
    (
        "7 one damaged session harms no list",
        [
            (
                f"{STORE}/redis_store.py",
                "except InternalError as error:\n                    heads",
                "except MemoryError as error:\n                    heads",
            )
        ],
        f"{DAMAGE}::test_one_damaged_session_harms_no_other[spec-{{]",
    ),
    (
        "7 a damaged session can be deleted",
        [
            (
                f"{STORE}/redis_store.py",
                "            except Damaged:\n                name, damage",
                "            except MemoryError:\n                name, damage",
            )
        ],
        f"{DAMAGE}::test_one_damaged_session_harms_no_other[spec-{{]",
    ),
    (
        "7 one damaged session stops no housework",
        [
            (
                f"{STORE}/garbage.py",
                "                if not _damage(error):\n                    raise\n                log",
                "                raise\n                log",
            )
        ],
        f"{DAMAGE}::test_damage_in_what_all_share_stops_no_housework",
    ),
    (
        "7 the private store leaves its disk room for a rewrite",
        [
            (
                "service/adamd_service/store/embedded/disk_room.py",
                "if self.unable or not self._fits(nbytes):",
                "if False:",
            )
        ],
        "tests/store/test_room.py::test_what_is_let_in_counts_at_once",
    ),
    (
        "7 the private store's memory is bounded",
        [("service/adamd_service/store/embedded/server.py", '"maxmemory": str(self._memory)', '"maxmemory": "0"')],
        "tests/store/test_embedded.py::test_it_holds_no_more_than_it_may",
    ),
    (
        "7 there are only so many sessions",
        [(f"{LUA}/claim.lua", "  return {nonce, 'full'}\n", "")],
        "tests/store/test_creation.py::test_there_are_only_so_many_sessions",
    ),
    (
        "the store's directory is its user's alone",
        [("service/adamd_service/store/embedded/private_files.py", "if status.st_mode & 0o077:", "if False:")],
        "tests/store/test_embedded.py::test_a_directory_that_is_open_to_others_is_refused[488]",
    ),
    (
        "7 waiting for the store takes no place of computing",
        [(f"{ENGINE}/engine.py", "self._workers.ask if hot.durable else self._workers.run", "self._workers.ask")],
        "tests/http/test_http_silent_store.py::test_waiting_for_the_store_takes_no_place_of_computing",
    ),
    (
        "7 a store that is known to be silent is not asked",
        [
            (
                "service/adamd_service/store/connection/silence.py",
                "return bool(self._places) and place in self._places",
                "return False",
            )
        ],
        "tests/store/test_silence.py::test_a_silent_store_is_asked_no_more[valkey]",
    ),
    (
        "1 the body is the one that the digest names",
        [(f"{ENGINE}/rebuilding.py", "        check_digest(record, updates, spec.layout, body)\n", "")],
        f"{LAWS}::test_what_the_store_changed_is_seen_and_not_served[body]",
    ),
    (
        "1 the scalars are the ones that the chain names",
        [(f"{ENGINE}/rebuilding.py", "if record.prev_chain != chain or record.chain != expected:", "if False:")],
        f"{LAWS}::test_what_the_store_changed_is_seen_and_not_served[scalars]",
    ),
    (
        "1 every record after the snapshot is replayed",
        [(f"{ENGINE}/rebuilding.py", "return state, ref.chain, ref.step,", "return state, head.chain, head.step,")],
        f"{LAWS}::test_law_1_state_is_the_fold_of_the_log[inline]",
    ),
    (
        "2 arrays that a kernel left half done are dropped",
        [
            (
                f"{ENGINE}/step.py",
                "        except BaseException:\n            hot.drop()\n            raise\n        loaded.diverged",
                "        except BaseException:\n            raise\n        loaded.diverged",
            )
        ],
        f"{LAWS}::test_law_2_a_kernel_error_after_the_commit_is_rebuilt_from_the_store",
    ),
    (
        "2 nothing is applied before the commit",
        [
            (
                f"{ENGINE}/step.py",
                "        if hot.durable:\n            if not await self._commit(",
                "        self._change(hot, loaded, step, updates, out, io.permit, best=notes.best)\n        if hot.durable:\n            if not await self._commit(",
            ),
            (
                f"{ENGINE}/step.py",
                "        overflowed = self._change(hot, loaded, step, updates, out, io.permit, best=notes.best)\n        loaded.advance(",
                "        overflowed = 0\n        loaded.advance(",
            ),
            (
                f"{ENGINE}/step.py",
                "        hot.drop()\n        step.committed = True",
                "        step.committed = True",
            ),
            (
                f"{ENGINE}/step.py",
                "        except BaseException:\n            hot.drop()\n            raise\n        if isinstance(outcome",
                "        except BaseException:\n            raise\n        if isinstance(outcome",
            ),
            (
                f"{ENGINE}/rebuilding.py",
                "        except BaseException:\n            hot.drop()\n            raise\n        assert",
                "        except BaseException:\n            raise\n        assert",
            ),
        ],
        f"{LAWS}::test_law_2_nothing_is_applied_before_the_commit[inline]",
    ),
    (
        "2 an unknown outcome is found out, not taken for a failure",
        [
            (
                f"{ENGINE}/step.py",
                "            await io.blocking(self._drop_and_resolve, hot, step, record.step)\n            return False",
                '            hot.drop()\n            raise StoreUnavailable("no answer")',
            )
        ],
        f"{LAWS}::test_law_2_a_commit_whose_answer_was_lost_is_found_out[chunks]",
    ),
    (
        "2 a commit from the loop knows its own answer",
        [
            (
                "service/adamd_service/store/loop_connections.py",
                "answer and answer[0] == nonce.encode()",
                "answer",
            )
        ],
        "tests/store/test_lines.py::test_another_calls_answer_is_not_taken_for_its_own",
    ),
    (
        "2 a connection whose answer did not come is thrown away",
        [
            (
                "service/adamd_service/store/loop_connections.py",
                "            self._drop(line)\n            if isinstance(error",
                "            self._idle.append(line)\n            if isinstance(error",
            )
        ],
        "tests/store/test_lines.py::test_no_answer_in_time_is_an_unknown_outcome_and_the_connection_is_gone",
    ),
    (
        "5 a gradient that is too stale, or of another history, does not count",
        [("service/adamd_service/rules.py", " or _off_base(head, ring, request.base)", "")],
        "tests/contract/test_contract_push.py::test_a_push_that_is_too_stale_is_told_and_does_not_count[http]",
    ),
    (
        "5 what a client has not seen is not deleted by it",
        [("client/adamd/sansio/tracking.py", "None if anyway else self.now.chain", "None")],
        "tests/contract/test_contract_push.py::test_what_a_client_has_not_seen_is_not_deleted_by_it[grpc]",
    ),
    (
        "2 a connection that is not quiet is not used",
        [
            (
                "service/adamd_service/store/loop_connections.py",
                "            if line.is_quiet():",
                "            if True:",
            )
        ],
        "tests/store/test_lines.py::test_connections_that_ended_are_seen_before_anything_is_sent",
    ),
    (
        "7 what became of a commit is not asked on the event loop",
        [
            (
                f"{ENGINE}/step.py",
                "await io.blocking(self._drop_and_resolve, hot, step, record.step)",
                "self._drop_and_resolve(hot, step, record.step)",
            )
        ],
        f"{LAWS}::test_law_2_a_commit_whose_answer_was_lost_is_found_out[inline]",
    ),
    (
        "2 no process behind the store's address is used before it was looked at",
        [(f"{STORE}/connection/trust.py", "        if node.run_id not in self._accepted:\n", "        if False:\n")],
        "tests/store/test_trust.py::test_no_process_is_used_before_it_was_looked_at",
    ),
    (
        "2 nothing is committed while the store does not keep what is promised",
        [
            (
                f"{STORE}/redis_store.py",
                """        self._trust.require()
        self._grow(COMMIT_OVERHEAD_BYTES + len(commit.record.inline or b""))
        script_keys, args""",
                """        self._grow(COMMIT_OVERHEAD_BYTES + len(commit.record.inline or b""))
        script_keys, args""",
            )
        ],
        "tests/store/test_trust.py::test_the_file_is_switched_off_while_it_serves",
    ),
    (
        "2 a first append-only file that is not whole keeps nothing",
        [(f"{STORE}/connection/durability.py", 'set(sizes) == {"0"}', "not sizes")],
        "tests/store/test_trust.py::test_a_file_that_is_not_whole_yet_keeps_nothing",
    ),
    (
        "2 a store that loads is not judged",
        [(f"{STORE}/connection/durability.py", '    if info.get("loading") == "1":\n', "    if False:\n")],
        "tests/store/test_trust.py::test_a_store_that_loads_is_not_judged",
    ),
    (
        "2 a demoted primary is left by threads",
        [(f"{STORE}/connection/sockets.py", "            if leaves(error):\n", "            if False:\n")],
        "tests/store/test_trust.py::test_a_demoted_primary_is_left_by_threads",
    ),
    (
        "2 a demoted primary is left by the loop",
        [
            (
                f"{STORE}/loop_connections.py",
                "                if leaves_by(str(answer)):\n",
                "                if False:\n",
            )
        ],
        "tests/store/test_trust.py::test_a_demoted_primary_is_left_by_the_loop",
    ),
    (
        "2 nothing is read from a replica",
        [(f"{STORE}/connection/trust.py", "                raise Unfit(DEMOTED)\n", "                return\n")],
        "tests/store/test_trust.py::test_a_name_that_leads_to_a_replica_still",
    ),
    (
        "2 a script that was not allowed one of its commands may have run others",
        [(f"{STORE}/commit_call.py", " if in_the_middle(error) else ", " if False else ")],
        "tests/store/test_permissions.py::test_a_command_that_a_script_may_not_run_leaves_the_outcome_unknown",
    ),
    (
        "2 ready is who can write",
        [
            (
                f"{STORE}/redis_store.py",
                "        self.announce(replica, ttl)\n        self.bulk.look()",
                "        self.bulk.look()",
            )
        ],
        "tests/store/test_trust.py::test_ready_is_who_can_write",
    ),
    (
        "2 TLS reaches the Sentinels",
        [(f"{STORE}/connection/urls.py", '{"ssl": tls, **both, **own}', '{"ssl": False, **both, **own}')],
        "tests/store/test_tls.py::test_a_primary_that_a_sentinel_names",
    ),
    (
        "2 a step holds its session while the loop waits for its commit",
        [
            (
                f"{ENGINE}/engine.py",
                "        async with hot.lock:\n            # Checked again",
                "        if True:\n            # Checked again",
            )
        ],
        "tests/engine/test_on_the_loop.py::test_the_same_step_twice_at_once_is_committed_once_and_the_second_waits",
    ),
    (
        "3 a step has one digest",
        [
            (
                "service/adamd_service/rules.py",
                "entry.digest == request.digest and number == head.step",
                "number == head.step",
            )
        ],
        f"{LAWS}::test_law_3_one_digest_per_step",
    ),
    (
        "3 the digest covers the settings carried",
        [
            (
                "service/adamd_service/rules.py",
                "said = [encoding, dtype, present, settings]",
                "said = [encoding, dtype, present]",
            )
        ],
        f"{LAWS}::test_law_3_the_digest_covers_settings_and_presence",
    ),
    (
        "4 a state on a device is fetched before it is copied",
        [(f"{ENGINE}/snapshots.py", "        self._device.fetch(state)\n", "")],
        "tests/device/test_laws_on_a_device.py::test_a_session_goes_from_a_cpu_to_a_gpu_and_back",
    ),
    (
        "4 what was updated on a device alone is known to be newer there",
        [
            (
                "service/adamd_service/device/gpu.py",
                "                home.stale = True\n",
                "                home.stale = False\n",
            )
        ],
        "tests/device/test_device.py::test_every_optimizer_gives_the_bits_of_the_cpu[adam-float32]",
    ),
    (
        "4 no operation is contracted or reordered",
        [
            (
                "service/adamd_service/optim/numba_cache.py",
                '"nogil": True,',
                '"nogil": True, "fastmath": True,',
            )
        ],
        "tests/optim/test_parity.py::test_fused_equals_reference",
    ),
    (
        "5 the commit compares chain and step",
        [(f"{LUA}/commit.lua", " or head_chain ~= expected_chain or head_step ~= expected_step", "")],
        f"{LAWS}::test_law_5_any_replica_may_serve_and_one_history_comes_of_it[inline]",
    ),
    (
        "5 the commit compares the settings' revision",
        [(f"{LUA}/commit.lua", "or head_revision ~= expected_revision ", "")],
        f"{LAWS}::test_law_5_a_patch_on_one_replica_counts_for_the_steps_of_another",
    ),
    (
        "5 another history is told",
        [("service/adamd_service/rules.py", "    if expected is None or expected == if_match:", "    if True:")],
        f"{LAWS}::test_law_5_a_store_that_went_back_is_told",
    ),
    (
        "6 a length is refused before the body is read",
        [
            (
                f"{ENGINE}/uploads.py",
                "elif declared is not None and declared != expected:",
                "elif False:",
            )
        ],
        f"{LAWS}::test_law_6_what_is_refused_changes_nothing_and_reads_nothing",
    ),
    (
        "6 every number is checked",
        [(f"{ENGINE}/receiving.py", "        self.gradient.check(end)\n", "")],
        f"{LAWS}::test_law_6_what_is_refused_changes_nothing_and_reads_nothing",
    ),
    (
        "3 the digest covers the encoding",
        [
            (
                "service/adamd_service/rules.py",
                "said = [encoding, dtype, present, settings]",
                "said = [dtype, present, settings]",
            )
        ],
        f"{ENCODED}::test_law_3_the_digest_covers_the_encoding",
    ),
    (
        "6 indices are in order and in range",
        [(f"{OPTIM}/gradients/encoded.py", "        self._check_order(start, self._ordered)\n", "")],
        f"{ENCODED}::test_law_6_hostile_bodies_change_nothing_and_leave_nothing[inline]",
    ),
    (
        "6 scales are finite and have no sign",
        [(f"{OPTIM}/gradients/encoded.py", "        self._check_scales(start, self._scales_checked)\n", "")],
        f"{ENCODED}::test_law_6_hostile_bodies_change_nothing_and_leave_nothing[inline]",
    ),
    (
        "6 every product of a scale is checked",
        [(f"{OPTIM}/gradients/encoded.py", "        while self._checked < end - begin:", "        while False:")],
        f"{ENCODED}::test_law_6_hostile_bodies_change_nothing_and_leave_nothing[chunks]",
    ),
    (
        "6 the length of an encoded body is refused before it is read",
        [
            (
                f"{ENGINE}/uploads.py",
                "            encodings.check_length(call.encoding, declared, size, dtype)\n",
                "            pass\n",
            )
        ],
        f"{ENCODED}::test_law_6_a_length_is_refused_before_a_byte_is_read",
    ),
    (
        "1 what an encoded record says is checked again before it is applied",
        [(f"{ENGINE}/rebuilding.py", "            gradient.check(body.nbytes)\n", "            pass\n")],
        f"{ENCODED}::test_a_record_that_lies_consistently_says_nowhere_to_write[covered0]",
    ),
    (
        "6 a refused upload leaves nothing in the store",
        [
            (
                f"{ENGINE}/uploads.py",
                "self._store.discard(session_id, attempt, staging.finish())",
                "staging.finish()",
            )
        ],
        f"{LAWS}::test_law_6_what_is_refused_changes_nothing_and_reads_nothing",
    ),
    (
        "6 a state is charged before it is loaded",
        [(f"{ENGINE}/engine.py", "        if charged:\n            await self._room(hot)\n", "")],
        f"{LAWS}::test_law_6_a_session_too_large_for_this_server_is_refused_before_it_is_loaded",
    ),
    (
        "7 bytes in flight are bounded",
        [(f"{ENGINE}/admission.py", "if used + nbytes <= self.limit:", "if True:")],
        f"{LAWS}::test_law_7_bytes_in_flight_are_bounded",
    ),
    (
        "7 hot bytes are bounded",
        [(f"{ENGINE}/cache.py", "        if self.used - hot.charged + nbytes > self.limit:", "        if False:")],
        f"{LAWS}::test_law_7_hot_bytes_are_bounded_and_eviction_loses_nothing",
    ),
    (
        "8 the core does no I/O",
        [("service/adamd_service/rules.py", "import hashlib\n", "import asyncio\nimport hashlib\n")],
        "tests/house/test_house.py::test_imports_run_one_way",
    ),
    (
        "the doors: Host names this server",
        [("service/adamd_service/http/server/host_and_origin_check.py", "name in allowed", "name != allowed")],
        "tests/http/test_http_doors.py::test_a_name_of_somebody_else_is_refused_whatever_it_asks",
    ),
    (
        "the doors: a foreign page is refused",
        [
            (
                "service/adamd_service/http/server/host_and_origin_check.py",
                "    if origins:\n        if len",
                "    if origins:\n        return None\n        if len",
            )
        ],
        "tests/http/test_http_doors.py::test_a_foreign_page_makes_nothing_without_asking_first",
    ),
    (
        "the doors: nothing stands between the socket and a body's reader",
        [
            (
                "service/adamd_service/http/server/host_and_origin_check.py",
                "(self._app if refusal is None else responses.problem(refusal))(scope, receive, send)",
                '(self._app if refusal is None else responses.problem(refusal))({**scope, "extensions": {}}, receive, send)',
            )
        ],
        "tests/http/test_http_doors.py::test_a_body_still_comes_straight_from_the_socket",
    ),
    (
        "an Upgrade is ignored, and its body is a body",
        [
            (
                "service/adamd_service/http/server/connection.py",
                "if not self.parser.should_upgrade():",
                "if True:",
            )
        ],
        "tests/http/test_http_framing.py::test_an_upgrade_is_ignored[jdk]",
    ),
    (
        "what is whole is answered before what is broken",
        [
            (
                "service/adamd_service/http/server/connection.py",
                "        elif not self._answering():\n            content",
                "        else:\n            content",
            ),
            (
                "service/adamd_service/http/server/connection.py",
                "        elif self.cycle.more_body:  # it was answered early, and its rest is broken\n"
                "            self._close()\n",
                "",
            ),
        ],
        "tests/http/test_http_framing.py::test_what_was_whole_is_answered_before_what_is_broken",
    ),
    (
        "no name can be an id",
        [
            (
                "client/adamd/wire/headers.py",
                'r"(?:[A-Za-ln-rt-z0-9][A-Za-z0-9._-]{0,127}|[ms](?:[A-Za-z0-9.-][A-Za-z0-9._-]{0,126})?)"',
                'r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"',
            )
        ],
        "tests/http/test_http_names.py::test_what_begins_as_an_id_is_no_name_whatever_follows",
    ),
    (
        "an order that is not the caller's is told",
        [
            (
                "service/adamd_service/codecs/documents.py",
                "    if not order or tuple(order) == layout.names:",
                "    if True:",
            )
        ],
        "tests/http/test_http_sessions.py::test_an_order_that_is_not_the_callers_is_told",
    ),
    (
        "a tag that does not match is 412",
        [
            (
                "service/adamd_service/http/api/request_headers.py",
                "    return chains or tuple(tags[:1])",
                "    return chains",
            )
        ],
        "tests/http/test_http_steps.py::test_a_tag_that_does_not_match_is_412_whatever_it_is",
    ),
    (
        "9 transports know the engine only",
        [
            (
                "service/adamd_service/http/api/routes.py",
                "from adamd.errors import InvalidRequest\n",
                "import adamd_service.store\nfrom adamd.errors import InvalidRequest\n",
            )
        ],
        "tests/house/test_house.py::test_imports_run_one_way",
    ),
    (
        "6 pieces follow each other without holes or overlaps",
        [(f"{GRPC}/sending.py", "        if message.offset != received:", "        if False:")],
        "tests/grpc/test_grpc_hostile.py::test_pieces_that_do_not_fit_are_refused[1-out of order]",
    ),
    (
        "6 an answer that no message can have is refused before the step",
        [(f"{ENGINE}/admission.py", "and nbytes > call.answer_limit:", "and False:")],
        "tests/grpc/test_grpc_errors.py::test_what_no_single_message_can_answer_is_refused_before_it_is_applied",
    ),
    (
        "7 gRPC calls at once are bounded",
        [(f"{GRPC}/calls.py", "            if not self._room():", "            if False:")],
        "tests/grpc/test_grpc_hostile.py::test_calls_at_once_are_bounded",
    ),
    (
        "7 a body's pieces are bounded in number",
        [(f"{GRPC}/sending.py", "        if count > most_pieces(received):", "        if False:")],
        "tests/grpc/test_grpc_hostile.py::test_a_million_tiny_messages_are_not_waited_for[1]",
    ),
    (
        "7 a reader that has stopped reading is given up",
        [
            (
                f"{GRPC}/sending.py",
                "        async with asyncio.timeout(gap):\n",
                "        async with asyncio.timeout(None):\n",
            )
        ],
        "tests/grpc/test_grpc_hostile.py::test_a_reader_that_never_reads_is_given_up[StepStream]",
    ),
    (
        "7 what an error has seen is let go of before the call ends",
        [(f"{GRPC}/calls.py", "    error.__traceback__ = error.__context__ = error.__cause__ = None\n", "")],
        "tests/grpc/test_grpc_hostile.py::test_a_refused_body_leaves_no_memory_behind[1]",
    ),
    (
        "9 gRPC knows the engine only",
        [
            (
                f"{GRPC}/steps.py",
                "from adamd.wire.channel import UNARY\n",
                "import adamd_service.rules\nfrom adamd.wire.channel import UNARY\n",
            )
        ],
        "tests/house/test_house.py::test_imports_run_one_way",
    ),
    (
        "9 one transport does not know the other",
        [
            (
                f"{GRPC}/steps.py",
                "from adamd.wire.channel import UNARY\n",
                "import adamd_service.http\nfrom adamd.wire.channel import UNARY\n",
            )
        ],
        "tests/house/test_house.py::test_imports_run_one_way",
    ),
    (
        "2 a lane that comes late writes into nothing that was dropped",
        [(f"{OPTIM}/kernels/threaded.py", "            if self._closed:\n                return\n", "")],
        "tests/optim/test_sliced.py::test_a_lane_that_comes_late_and_was_queued_without_a_thread_writes_nothing",
    ),
    (
        "7 the loops that a process compiles are bounded",
        [(f"{OPTIM}/kernels/numba_kernel.py", "if loop is None and len(_LOOPS) < MOST:", "if loop is None:")],
        "tests/optim/test_fused.py::test_beyond_so_many_the_reference_takes_their_place[False-float32]",
    ),
    (
        "7 parameters that are set again take no further room",
        [
            (
                f"{ENGINE}/engine.py",
                "                    self._workers.spawn(self._collect(hot.id))\n",
                "                    pass\n",
            )
        ],
        f"{LAWS}::test_parameters_that_are_set_again_take_no_further_room",
    ),
    (
        "7 what a snapshot unnames is swept where nobody collected",
        [
            (
                "service/adamd_service/store/snapshots.py",
                "            garbage.expect(self._client, spec.tenant, spec.id)\n",
                "",
            )
        ],
        f"{LAWS}::test_what_a_session_that_goes_on_has_unnamed_is_swept[False]",
    ),
    (
        "around the first parameters lie within their bounds",
        [(f"{OPTIM}/box_constraints.py", "            if inside:\n", "            if False:\n")],
        f"{AROUND}::test_bounds_stay_when_parameters_are_set_again",
    ),
    (
        "around a bound for each element is in the first snapshot",
        [(f"{ENGINE}/lifecycle.py", 'if name in ("params", *BOUNDS)}', 'if name == "params"}')],
        f"{AROUND}::test_bounds_stay_when_parameters_are_set_again",
    ),
    (
        "around an array of bounds is fixed",
        [
            (
                f"{OPTIM}/recurrence/wrapping.py",
                '"lower": hyper.lower == ARRAY, "upper": hyper.upper == ARRAY',
                '"lower": True, "upper": True',
            )
        ],
        "tests/optim/test_around.py::test_what_a_patch_may_change",
    ),
    (
        "7 a later start refuses what an earlier one still sends",
        [
            (
                "service/adamd_service/store/opening.py",
                "            store.bulk.notes.replace_tokens(identity)",
                "            pass",
            )
        ],
        "tests/store/bulk/test_shared.py::test_a_commit_that_comes_after_the_next_start_is_refused",
    ),
    (
        "7 an earlier start does not replace a later one's token",
        [
            (
                "service/adamd_service/store/bulk/notes.py",
                "self._client.set(SessionKeys(session_id).bulk, start.token, nx=True)",
                "self._client.set(SessionKeys(session_id).bulk, start.token)",
            )
        ],
        "tests/store/bulk/test_shared.py::test_an_earlier_start_does_not_replace_a_later_ones_token",
    ),
    (
        "7 extents of another server are its own to free",
        [
            (
                "service/adamd_service/store/garbage.py",
                "others = files is None and any(part.extents for part in batch)",
                "others = False",
            )
        ],
        "tests/store/bulk/test_shared.py::test_the_owner_frees_what_another_server_unnamed",
    ),
    (
        "7 a damaged session's extents are the owner's to free",
        [("service/adamd_service/store/garbage.py", "client.sismember(BULK_SESSIONS, keys.id)", "False")],
        "tests/store/bulk/test_shared.py::test_a_damaged_sessions_extents_are_the_owners_to_free",
    ),
    (
        "7 another directory is refused while sessions have bytes",
        [("service/adamd_service/store/bulk/directory.py", "(living := store.living(sessions))", "(living := [])")],
        "tests/store/bulk/test_shared.py::test_another_directory_is_refused_while_sessions_have_bytes",
    ),
    (
        "7 a server that lost its directory does not read it",
        [("service/adamd_service/store/bulk/homes.py", "if known != start:", "if False:")],
        "tests/store/bulk/test_shared.py::test_a_server_that_lost_its_directory_answers_as_the_others",
    ),
    (
        "7 a small session is read again where it moved on under its reader",
        [
            (
                f"{ENGINE}/rebuilding.py",
                "                if _names_the_same(now, head):  # so nobody has unlinked it\n",
                "                if True:\n",
            )
        ],
        "tests/engine/test_damage.py::test_a_small_session_is_read_without_a_lease_and_again_where_it_moved_on",
    ),
    (
        "1 what a store may name again is not overwritten",
        [("service/adamd_service/store/bulk/files.py", "HELD if self._hold else FREE", "FREE")],
        "tests/store/bulk/test_rollback.py::test_what_was_named_a_moment_ago_is_not_overwritten",
    ),
    (
        "1 a start overwrites nothing that was named a moment ago",
        [("service/adamd_service/store/bulk/files.py", " if now >= self._reuse_from else None", "")],
        "tests/store/bulk/test_rollback.py::test_a_start_overwrites_nothing_for_as_long",
    ),
    (
        "1 a store that went back frees nothing before it is read",
        [("service/adamd_service/store/bulk/homes.py", " and self._changes() == self._listed_at:", ":")],
        "tests/store/bulk/test_rollback.py::test_a_store_that_goes_back_finds_what_it_names",
    ),
    (
        "1 what a store names again is kept",
        [("service/adamd_service/store/bulk/files.py", "if extent in before.held and extent in named:", "if False:")],
        "tests/store/bulk/test_rollback.py::test_a_store_that_goes_back_finds_what_it_names",
    ),
    (
        "1 an extent that two sessions name is freed for neither",
        [
            (
                "service/adamd_service/store/bulk/homes.py",
                "owner if named.get(extent, owner) == owner else MANY",
                "owner",
            )
        ],
        "tests/store/bulk/test_shared.py::test_two_sessions_that_claim_an_extent_both_keep_it",
    ),
    (
        "7 an earlier start's token does not come back",
        [
            (
                "service/adamd_service/store/bulk/notes.py",
                "self._client.expire(names.bulk, TOKEN_SECONDS)",
                "self._client.delete(names.bulk)",
            )
        ],
        "tests/store/bulk/test_shared.py::test_a_start_that_comes_between_expectation_and_token",
    ),
    (
        "7 what a later start has written is not missing",
        [("service/adamd_service/store/bulk/homes.py", "            self.own_files()  #", "            pass  #")],
        "tests/store/bulk/test_shared.py::test_what_a_later_start_has_written_is_not_missing",
    ),
    (
        "7 a start on a full store is noted later",
        [
            (
                "service/adamd_service/store/bulk/homes.py",
                "        self.notes.pay()  # for a start",
                "        pass  # for a start",
            )
        ],
        "tests/store/bulk/test_contract.py::test_a_start_on_a_full_store_is_noted_once_there_is_room",
    ),
    (
        "7 a copy is refused while its server lives",
        [
            (
                "service/adamd_service/store/bulk/directory.py",
                'store.place() not in ("", self.place)',
                "False",
            )
        ],
        "tests/store/bulk/test_shared.py::test_a_copy_is_refused_while_its_server_lives",
    ),
    (
        "7 a first start makes no extent before the store has its note for good",
        [(f"{STORE}/bulk/homes.py", " or time.monotonic() < self.files_from:", ":")],
        "tests/store/bulk/test_rollback.py::test_a_power_cut_after_the_first_start_leaves_a_directory_that_is_taken_again",
    ),
    (
        "7 a store that lost its note of the directory is told again",
        [
            (
                f"{STORE}/bulk/notes.py",
                '                self._claim(self._identity, "", len(self.sessions()))\n',
                "                pass\n",
            )
        ],
        "tests/store/bulk/test_rollback.py::test_a_store_that_has_lost_its_note_of_the_directory_is_told_again",
    ),
    (
        "7 readers need no write",
        [
            (
                f"{STORE}/redis_store.py",
                "        with suppress(StoreFull), translated():  # as where",
                "        with translated():  # as where",
            )
        ],
        "tests/store/test_room.py::test_readers_go_on_where_the_store_takes_no_writes",
    ),
    (
        "7 leases of the dead do not keep garbage",
        [(f"{STORE}/bulk/homes.py", "                self._drop_leases(sessions)\n", "")],
        "tests/store/bulk/test_contract.py::test_leases_of_the_dead_end_with_the_next_start_of_a_private_store",
    ),
    (
        "7 leases in a shared store are left alone",
        [(f"{STORE}/bulk/homes.py", "        if not self.is_private:\n            return\n", "")],
        "tests/store/bulk/test_contract.py::test_leases_of_the_dead_end_with_the_next_start_of_a_private_store",
    ),
    (
        "7 a full store rewrites its file for less than its margin",
        [(f"{STORE}/embedded/caretaker.py", "        if self.room.full:", "        if False:")],
        "tests/store/test_room.py::test_a_store_on_a_full_disk_gives_back_less_than_its_margin",
    ),
    (
        "around the norm is the scaled gradient's",
        [(f"{OPTIM}/step_factors.py", "norm = hyper.gradient_scale * gradient_norm(", "norm = gradient_norm(")],
        "tests/optim/test_around.py::test_what_each_part_does",
    ),
    (
        "around the schedule counts from the first update",
        [(f"{OPTIM}/schedules.py", "    k = n - 1\n", "    k = n\n")],
        "tests/optim/test_schedules.py::test_by_hand",
    ),
    (
        "around the norm's tree is the one that is written down",
        [(f"{OPTIM}/gradients/norm.py", "LANES: Final = 256", "LANES: Final = 128")],
        "tests/optim/test_norm.py::test_the_tree",
    ),
    (
        "around a scaled square does not overflow",
        [
            (
                f"{OPTIM}/step_factors.py",
                "        if hyper.gradient_scale > 1.0:\n            _check",
                "        if False:\n            _check",
            )
        ],
        "tests/optim/test_around.py::test_a_scale_that_makes_a_square_overflow_is_told_with_the_index",
    ),
    (
        "around patterns do not look at more than they may",
        [("client/adamd/wire/patterns.py", "    _check_work(entries, names)\n", "")],
        "tests/wire/test_wire_patterns.py::test_hostile_patterns_are_refused_before_they_cost_anything",
    ),
    (
        "4 a place on a device is that of its own state",
        [
            (
                "service/adamd_service/device/residence.py",
                "home if home is not None and home.state() is state else None",
                "home",
            )
        ],
        "tests/device/test_device.py::test_a_state_that_got_the_id_of_one_that_is_gone_is_its_own",
    ),
    (
        "around an exact name wins over a pattern",
        [
            (
                "client/adamd/wire/patterns.py",
                "        if tensor in self.exact:\n            return self.exact[tensor]\n",
                "",
            )
        ],
        "tests/wire/test_wire_patterns.py::test_patterns",
    ),
    (
        "6 what a state array begins as is held by the dtype",
        [(f"{OPTIM}/scalars.py", "not isinstance(first, str) and first > most", "False")],
        "tests/optim/test_scalars.py::test_what_float32_cannot_hold_is_refused",
    ),
    (
        "6 a derived default that is infinite is refused",
        [(f"{OPTIM}/settings.py", "        if not math.isfinite(value):\n", "        if False:\n")],
        "tests/optim/test_optim_settings.py::test_the_papers_names_are_refused_by_name",
    ),
    (
        "6 a setting by two names with two values is refused",
        [("client/adamd/wire/setting_aliases.py", "isinstance(own, bool) or own != value", "False")],
        "tests/optim/test_optim_settings.py::test_the_papers_names_are_refused_by_name",
    ),
    (
        "6 an alias is in its setting's range",
        [("client/adamd/wire/setting_aliases.py", "    if not (math.isfinite(number) and", "    if False and (")],
        "tests/optim/test_optim_settings.py::test_the_papers_names_are_refused_by_name",
    ),
    (
        "around the form of an optimizer is fixed",
        [
            (
                f"{OPTIM}/settings.py",
                "            name in optimizer.fixed\n            or name in",
                "            name in",
            )
        ],
        "tests/optim/test_optim_settings.py::test_what_fedopt_fixes",
    ),
    (
        "around v begins as tau squared in the paper's form",
        [(f"{OPTIM}/family/fedopt.py", "hyper.eps * hyper.eps if", "0.0 if")],
        "tests/optim/test_published_vectors.py::test_published",
    ),
    (
        "around form flower has one update more in its exponent",
        [(f"{OPTIM}/family/fedopt.py", "t + 1 if is_flower else t", "t")],
        "tests/optim/test_published_vectors.py::test_published",
    ),
    (
        "around the SDK keeps a step's settings by their own names",
        [("client/adamd/sansio/tracking.py", "own_names(changes, self.now.settings)", "changes")],
        "tests/contract/test_contract_family.py::test_fedopt_takes_the_papers_names",
    ),
    (
        "around the SDK compares settings by their own names",
        [("client/adamd/sansio/settings_match.py", "own_names(settings, standing.settings)", "settings")],
        "tests/contract/test_contract_family.py::test_fedopt_takes_the_papers_names",
    ),
]


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A copy of the sources, one for all guards: what Python and pytest compile for the first, the others find."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in ("client", "service", "tests"):
        shutil.copytree(ROOT / folder, copy / folder)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


@pytest.fixture(scope="session")
def warm():
    one = Warm()
    yield one
    one.close()


def put(path, text):
    """Write a source; what was compiled of another text of it goes, for that is told by its second and its size alone."""
    path.write_text(text)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()


@contextlib.contextmanager
def without(tree, edits):
    """The tree with the guard taken out, for so long."""
    whole = {}
    try:
        for name, stands, instead in edits:
            path = tree / name
            text = path.read_text()
            whole.setdefault(path, text)
            assert text.count(stands) == 1, f"{name}: the guard is not where it was: {stands!r}"
            put(path, text.replace(stands, instead))
        yield
    finally:
        for path, text in whole.items():
            put(path, text)
        for left in (".hypothesis", ".import_linter_cache"):  # no guard is found by what another one left
            shutil.rmtree(tree / left, ignore_errors=True)


def check_guard(removed, edits, watcher, tree, warm, *options):
    """Run the watcher on the tree without the guard: it must go red."""
    with without(tree, edits):
        done = watched([watcher], tree, warm, "-x", *options)
    assert done.returncode == 1, f"without {removed!r} {watcher} still passes:\n{done.stdout[-4000:]}"


def check_whole(guards, tree, warm, *options):
    """Run a watcher of each module on the whole tree: what goes red without its guard goes red for that reason alone."""
    one_of_each = {watcher.partition("::")[0]: watcher for _, _, watcher in guards}
    done = watched(one_of_each.values(), tree, warm, *options, within=600)
    assert done.returncode == 0, done.stdout[-4000:]


def watched(watchers, tree, warm, *options, within=120):
    paths = os.pathsep.join(str(tree / folder) for folder in ("client", "service"))
    # CI: pytest explains a red test at length there. A law that took hours to go red would be no law.
    environment = {**os.environ, "PYTHONPATH": paths, "CI": "true"}
    return warm.pytest(
        ["-q", "-m", "", "-p", "no:cacheprovider", *options, *watchers], tree, environment, within=within
    )


@pytest.mark.slow
@pytest.mark.parametrize(("removed", "edits", "watcher"), GUARDS, ids=[guard[0] for guard in GUARDS])
def test_a_guard_that_is_taken_out_is_missed(removed, edits, watcher, tree, warm):
    check_guard(removed, edits, watcher, tree, warm)


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_watchers_are_green_where_nothing_is_taken_out(tree, warm):
    check_whole(GUARDS, tree, warm)
