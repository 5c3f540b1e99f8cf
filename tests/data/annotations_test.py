"""The table of boxes against a plain loop over its rows."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdet.data.annotations import Annotations, Columns

SIZES = ((40, 60), (50, 30), (1, 1))  # height, width
SIDES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 30.0, 40.0, 50.0, 60.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 1e-12]),
    st.floats(-80, 80),
)
ROWS = st.tuples(
    st.integers(0, 2),  # image
    st.one_of(st.none(), st.integers(-2, 5), st.just("7"), st.just(2**63)),  # annotation id
    st.integers(0, 3),  # label
    st.tuples(SIDES, SIDES, SIDES, SIDES),
    st.one_of(st.none(), st.floats(), st.just(10**400)),  # area
    st.sampled_from([0, 1, True, None]),  # crowd
)


def expected(row):
    """Clipped box of a row, or None where it is to be left out."""
    image, _, _, (x, y, w, h), _, _ = row
    if not all(map(math.isfinite, (x, y, w, h))) or w <= 0 or h <= 0:
        return None
    height, width = SIZES[image]
    x1, x2 = (np.float32(min(max(value, 0), width)) for value in (x, x + w))
    y1, y2 = (np.float32(min(max(value, 0), height)) for value in (y, y + h))
    return [x1, y1, x2, y2] if x2 > x1 and y2 > y1 else None


@settings(max_examples=100, deadline=None)
@given(st.lists(ROWS, max_size=12))
def test_against_a_plain_loop(rows):
    columns = Columns()
    for row in rows:
        columns.add(*row)
    table = Annotations(columns, np.array(SIZES))
    assert len(table.faults) + len(table.boxes) == len(rows)
    for image in range(3):
        mine = [(row, expected(row)) for row in rows if row[0] == image]
        mine = [(row, box) for row, box in mine if box is not None]
        record = table.record(image)
        np.testing.assert_array_equal(record["boxes"], np.array([box for _, box in mine]).reshape(-1, 4))
        assert record["labels"].tolist() == [row[2] for row, _ in mine]
        assert record["crowd"].tolist() == [bool(row[5]) for row, _ in mine]
        assert table.box_counts[image] == sum(not row[5] for row, _ in mine)
        part = slice(table.offsets[image], table.offsets[image + 1])
        for (_, _, _, box, area, _), kept in zip((row for row, _ in mine), table.area[part], strict=True):
            own = isinstance(area, float) and 0 <= area < 1e300
            assert kept == (area if own else box[2] * box[3])
        for (row, _), kept in zip(mine, table.ids[part], strict=True):
            assert kept == row[1] if type(row[1]) is int and 1 <= row[1] <= 5 else kept > 0
        assert table.original[part].tolist() == [list(row[3]) for row, _ in mine]
    fresh = [i for i in table.ids.tolist() if i > 5]
    assert len(set(fresh)) == len(fresh)


def test_changing_a_record_leaves_the_table_alone():
    columns = Columns()
    columns.add(0, 1, 0, (1, 2, 3, 4), None, 0)
    table = Annotations(columns, np.array(SIZES))
    record = table.record(0)
    for value in record.values():
        value[:] = 1
    np.testing.assert_array_equal(table.record(0)["boxes"], [[1, 2, 4, 6]])
