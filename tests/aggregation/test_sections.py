"""The vector's parts: each element once, in order, with those who have it; no longer than asked for."""

from hypothesis import given
from hypothesis import strategies as st

from adamd_service.aggregation import ArrayValues, Span
from adamd_service.aggregation.sections import Scaled, sections

SIZE = 40
NOBODY = ArrayValues(None)  # nothing is read here


@st.composite
def presences(draw):
    """Spans apart from each other, or all."""
    if draw(st.booleans()):
        return None
    edges = sorted(draw(st.sets(st.integers(0, SIZE), max_size=8)))
    return tuple(Span(*edges[i : i + 2]) for i in range(0, len(edges) - 1, 2))


@given(st.lists(presences(), max_size=5), st.integers(1, SIZE + 1))
def test_each_element_once_with_those_who_have_it(presents, longest):
    found = sections([Scaled(NOBODY, present=present) for present in presents], SIZE, longest)
    assert all(section.stop - section.start <= longest for section in found)
    elements = [(element, section.members) for section in found for element in range(section.start, section.stop)]
    assert elements == [
        (
            element,
            tuple(
                i for i, present in enumerate(presents) if present is None or any(a <= element < b for a, b in present)
            ),
        )
        for element in range(SIZE)
    ]
    if not any(presents):
        assert len(found) == -(-SIZE // longest)


def test_neighbours_with_the_same_members_are_one():
    both = (Span(0, 10), Span(10, 20))
    assert len(sections([Scaled(NOBODY, present=both)], SIZE, SIZE)) == 2
