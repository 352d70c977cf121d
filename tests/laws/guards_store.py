"""Guards of the store. What a row says stands in test_guards.py."""

LAWS = "tests/engine/test_laws.py"
LUA = "service/adamd_service/store/lua"
STORE = "service/adamd_service/store"
DAMAGE = "tests/engine/test_damage.py"

GUARDS = [
    (
        "5 a round that was cancelled makes no step",
        [(f"{LUA}/commit.lua", "  if token ~= round_token or number ~= step then\n", "  if number ~= step then\n")],
        "tests/engine/rounds/test_closing.py::test_a_cancelled_round_makes_no_step",
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
        "7 a full store rewrites its file for less than its margin",
        [(f"{STORE}/embedded/caretaker.py", "        if self.room.full:", "        if False:")],
        "tests/store/test_room.py::test_a_store_on_a_full_disk_gives_back_less_than_its_margin",
    ),
]
