"""Guards of HTTP, gRPC, the SDK and the command line. What a row says stands in test_guards.py."""

GRPC = "service/adamd_service/grpc"

GUARDS = [
    (
        "words for people reach a stream of any encoding",
        [("service/adamd_service/__main__.py", "    take_any_words()\n    app()", "    app()")],
        "tests/http/test_http_serving.py::test_the_ready_line_comes_in_any_encoding[ioencoding]",
    ),
    (
        "5 what a client has not seen is not deleted by it",
        [("client/adamd/sansio/tracking.py", "None if anyway else self.now.chain", "None")],
        "tests/contract/test_contract_push.py::test_what_a_client_has_not_seen_is_not_deleted_by_it[grpc]",
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
        "around patterns do not look at more than they may",
        [("client/adamd/wire/patterns.py", "    _check_work(entries, names)\n", "")],
        "tests/wire/test_wire_patterns.py::test_hostile_patterns_are_refused_before_they_cost_anything",
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
