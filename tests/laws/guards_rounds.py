"""Guards of rounds, and of what aggregates them. What a row says stands in test_guards.py."""

ENGINE = "service/adamd_service/engine"
STORE = "service/adamd_service/store"

GUARDS = [
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
        "3 a contribution's digest covers its kind and its number of examples",
        [(f"{ENGINE}/rounds/contributing.py", "[body_digest, call.kind, call.num_examples]", "[body_digest]")],
        "tests/engine/rounds/test_contributing.py::test_the_same_again_is_a_duplicate_and_another_a_conflict",
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
        "2 a look that began before a contribution came does not forget it",
        [(f"{ENGINE}/rounds/closing.py", "            self._again.add(session_id)", "            pass")],
        "tests/engine/rounds/test_closing.py::test_what_comes_during_a_look_is_looked_at",
    ),
]
