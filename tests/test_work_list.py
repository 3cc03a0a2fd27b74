"""How tensors are cut into work items: each element once, of even size, rows kept whole."""

import itertools
import random

import pytest

from fusedtricks import ops

pytestmark = pytest.mark.skipif(ops.native is None, reason=f"no extension: {ops.missing_reason}")

# csrc/work_list.h: kItemElements and kCutAlignment.
ITEM = 65536
ALIGNMENT = 64

Extents = list[tuple[int, int]]
Items = list[tuple[int, int, int]]


def plan(extents: Extents) -> tuple[Items, list[int]]:
    result = ops.native.work_list(extents)
    return result["items"], result["units"]


def random_extents(seed: int) -> Extents:
    """Return tensors of all sorts: empty, tiny, about one item, long rows, many rows."""
    rng = random.Random(seed)
    extents = []
    for _ in range(rng.randrange(1, 60)):
        if rng.random() < 0.5:
            around = rng.choice([0, 1, 64, 1000, ITEM, 2 * ITEM, 7 * ITEM])
            extents.append((max(0, around + rng.randrange(-3, 4)), 0))
        else:
            row_length = max(1, rng.choice([1, 9, 576, ITEM, 3 * ITEM]) + rng.randrange(-2, 3))
            n_rows = rng.choice([0, 1, 2, 17, 130])
            extents.append((n_rows * row_length, row_length))
    return extents


EDGES: dict[str, Extents] = {
    "none": [],
    "one empty": [(0, 0)],
    "all empty": [(0, 0), (0, 5), (0, ITEM + 1)],
    "empty first": [(0, 0), (3, 0)],
    "empty last": [(3, 0), (0, 0)],
    "empty between": [(3, 0), (0, 7), (5, 5), (0, 0), (0, 0), (2, 1)],
    "scalar": [(1, 0)],
    "one item": [(ITEM, 0)],
    "one more than an item": [(ITEM + 1, 0)],
    "one less than an item": [(ITEM - 1, 0)],
    "row of an item": [(4 * ITEM, ITEM)],
    "row longer than an item": [(4 * (ITEM + 1), ITEM + 1)],
    "rows that do not fill an item": [(3 * (ITEM // 2 + 1), ITEM // 2 + 1)],
    "rows of one": [(ITEM + 3, 1)],
    "beyond 32 bits": [(2**31 + 5, 0), (2**32 + 2, 2**31 + 1)],
    "many tiny": [(1, 0)] * 5000,
}
CASES = [*EDGES.values(), *(random_extents(seed) for seed in range(200))]
IDS = [*EDGES, *(f"random {seed}" for seed in range(200))]
each_plan = pytest.mark.parametrize("extents", CASES, ids=IDS)


@each_plan
def test_every_element_is_covered_once_and_in_order(extents: Extents) -> None:
    items, _ = plan(extents)
    expected = [(i, 0, numel) for i, (numel, _) in enumerate(extents) if numel]
    joined: Items = []
    for tensor, begin, end in items:
        assert begin < end
        if joined and joined[-1][0] == tensor:
            assert joined[-1][2] == begin
            joined[-1] = (tensor, joined[-1][1], end)
        else:
            joined.append((tensor, begin, end))
    assert joined == expected


@each_plan
def test_items_are_bounded_and_even(extents: Extents) -> None:
    items, _ = plan(extents)
    for tensor, begin, end in items:
        numel, row_length = extents[tensor]
        assert end - begin <= ITEM
        if row_length == 0:
            # Pieces are even up to the alignment of the cut, so only the last may be shorter.
            n_pieces = -(-numel // ITEM)
            assert end == numel or end - begin >= numel // n_pieces
            assert begin % ALIGNMENT == 0


@each_plan
def test_rows_are_whole_unless_longer_than_an_item(extents: Extents) -> None:
    items, _ = plan(extents)
    for tensor, begin, end in items:
        row_length = extents[tensor][1]
        if row_length == 0:
            continue
        if row_length <= ITEM:
            assert begin % row_length == 0 and end % row_length == 0
        else:
            assert begin // row_length == (end - 1) // row_length
            assert begin % row_length % ALIGNMENT == 0


@each_plan
def test_units_are_balanced_runs_of_items(extents: Extents) -> None:
    items, units = plan(extents)
    n_units = len(units) - 1
    assert units[-1] == len(items)
    assert all(a < b for a, b in itertools.pairwise(units))
    if items:
        assert units[0] == 0
    elements = [sum(e - b for _, b, e in items[u:v]) for u, v in itertools.pairwise(units)]
    assert len(elements) == n_units
    # A unit closes as soon as it is half full: no unit is longer than half an item and one item,
    # and all but the last are at least half an item.
    assert all(n < ITEM // 2 + ITEM for n in elements)
    assert all(n >= ITEM // 2 for n in elements[:-1])


def test_the_plan_depends_on_shapes_alone() -> None:
    extents = random_extents(7)
    assert plan(extents) == plan(list(extents))


def test_a_bad_argument_is_an_exception() -> None:
    for bad in (None, 3, [3], [(1,)], [(1, 2, 3)], [("a", 0)], [(1.5, 0)]):
        with pytest.raises(TypeError):
            ops.native.work_list(bad)
