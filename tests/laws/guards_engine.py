"""Guards of the engine, its rules and its devices. What a row says stands in test_guards.py."""

LAWS = "tests/engine/test_laws.py"
ENCODED = "tests/engine/test_engine_encodings.py"
ENGINE = "service/adamd_service/engine"
DAMAGE = "tests/engine/test_damage.py"
AROUND = "tests/contract/test_contract_around.py"

GUARDS = [
    (
        "1 what a step assigns is a part of its record",
        [(f"{ENGINE}/step.py", "            assigned=step.assigned,\n", "")],
        "tests/engine/rounds/test_tensors.py::test_each_tensor_by_its_rule",
    ),
    (
        "7 without a file descriptor the server is not ready",
        [(f"{ENGINE}/engine.py", "        if self.out_of_descriptors:\n", "        if False:\n")],
        "tests/http/test_http_serving.py::test_no_file_descriptor_left_is_told_and_over_when_there_are",
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
        "7 waiting for the store takes no place of computing",
        [(f"{ENGINE}/engine.py", "self._workers.ask if hot.durable else self._workers.run", "self._workers.ask")],
        "tests/http/test_http_silent_store.py::test_waiting_for_the_store_takes_no_place_of_computing",
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
        "5 a gradient that is too stale, or of another history, does not count",
        [("service/adamd_service/rules.py", " or _off_base(head, ring, request.base)", "")],
        "tests/contract/test_contract_push.py::test_a_push_that_is_too_stale_is_told_and_does_not_count[http]",
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
        "6 an answer that no message can have is refused before the step",
        [(f"{ENGINE}/admission.py", "and nbytes > call.answer_limit:", "and False:")],
        "tests/grpc/test_grpc_errors.py::test_what_no_single_message_can_answer_is_refused_before_it_is_applied",
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
        "around a bound for each element is in the first snapshot",
        [(f"{ENGINE}/lifecycle.py", 'if name in ("params", *BOUNDS)}', 'if name == "params"}')],
        f"{AROUND}::test_bounds_stay_when_parameters_are_set_again",
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
]
