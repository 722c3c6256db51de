"""What is worked out for many segments at once is what each would have by itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from firstlight.analysis import segments
from firstlight.analysis.segments import Intervals, Line

CODES = st.lists(st.lists(st.integers(-2, 5), max_size=6), min_size=1, max_size=5)
SPANS = st.lists(
    st.lists(st.integers(0, 50), max_size=8, unique=True).map(sorted), min_size=1, max_size=4
)


def numbered(parts: list[list[int]]) -> segments.Integers:
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts]).astype(np.int64)


@given(CODES)
def test_neighbours_are_of_the_same_segment(parts: list[list[int]]) -> None:
    codes, segment = np.array([code for part in parts for code in part], np.int64), numbered(parts)
    if not len(codes):
        return
    before = segments.before(codes, segments.firsts(segment), -9).tolist()
    after = segments.after(codes, segment, -9).tolist()
    for part in parts:
        known = [code for code in part if code >= 0]
        for place in range(len(part)):
            sooner = [code for code in part[: place + 1] if code >= 0]
            later = [code for code in part[place:] if code >= 0]
            assert before.pop(0) == (sooner[-1] if sooner else -9)
            assert after.pop(0) == (later[0] if later else known[-1] if known else -9)


@given(SPANS, st.integers(-1000, 1000))
def test_a_place_is_inside_its_own_segments_intervals_alone(
    parts: list[list[int]], origin: int
) -> None:
    line = Line(origin, 52)
    pairs = [
        (segment, start + origin, end + origin)
        for segment, edges in enumerate(parts)
        for start, end in zip(edges[::2], edges[1::2], strict=False)
    ]
    table = np.array(pairs, np.int64).reshape(-1, 3)
    intervals = Intervals(
        line.at(table[:, 0], table[:, 1]), line.at(table[:, 0], table[:, 2]), table[:, 1]
    )
    for segment in range(len(parts)):
        times = np.arange(51) + origin
        places = line.at(np.full(51, segment), times)
        assert line.times(places).tolist() == times.tolist()
        inside, codes = intervals.inside(places)
        for time, is_inside, code in zip(times, inside, codes, strict=True):
            expected = [s for of, s, e in pairs if of == segment and s <= time < e]
            assert bool(is_inside) == bool(expected)
            assert not expected or code == expected[0]


@given(st.lists(st.integers(-100, 100)))
def test_each_value_is_kept_once(values: list[int]) -> None:
    assert segments.distinct(np.array(values, np.int64)).tolist() == sorted(set(values))
