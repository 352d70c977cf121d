"""Guards of bulk in files. What a row says stands in test_guards.py."""

STORE = "service/adamd_service/store"

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
        "1 an extent that a contribution names is not free at the start",
        [(f"{STORE}/bulk/naming.py", ", *_of_contributions(session_id, waiting)]", "]")],
        "tests/engine/rounds/test_homes.py::test_a_crash_and_a_start[files-False]",
    ),
    (
        "7 nobody's update stays on the disk",
        [(f"{STORE}/bulk/files.py", "                self._overwrite(extent, zeros)\n", "                pass\n")],
        "tests/engine/rounds/test_homes.py::test_nobodys_update_stays_on_the_disk",
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
        "7 leases of the dead do not keep garbage",
        [(f"{STORE}/bulk/homes.py", "                self._drop_leases(sessions)\n", "")],
        "tests/store/bulk/test_contract.py::test_leases_of_the_dead_end_with_the_next_start_of_a_private_store",
    ),
    (
        "7 leases in a shared store are left alone",
        [(f"{STORE}/bulk/homes.py", "        if not self.is_private:\n            return\n", "")],
        "tests/store/bulk/test_contract.py::test_leases_of_the_dead_end_with_the_next_start_of_a_private_store",
    ),
]
