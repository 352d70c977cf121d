"""Guards of the update and its settings. What a row says stands in test_guards.py."""

ENCODED = "tests/engine/test_engine_encodings.py"
OPTIM = "service/adamd_service/optim"
AROUND = "tests/contract/test_contract_around.py"

GUARDS = [
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
        "around the first parameters lie within their bounds",
        [(f"{OPTIM}/box_constraints.py", "            if inside:\n", "            if False:\n")],
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
]
