"""The plan: every element exactly once, balanced, aligned."""

from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.buckets import ALIGNMENT, OFFSET_BYTES, Parameter, plan

SIZES = st.lists(st.tuples(st.integers(0, 20_000), st.sampled_from([2, 4, 8])), max_size=12)


@settings(max_examples=300, deadline=None)
@given(sizes=SIZES, shards=st.integers(1, 5), bucket=st.sampled_from([1, 4096, 10_000, 65_536]))
def test_every_element_lies_in_exactly_one_slice(sizes: list[tuple[int, int]], shards: int, bucket: int) -> None:
    parameters = [Parameter(f"p{i}", n, size) for i, (n, size) in enumerate(sizes)]
    planned = plan(parameters, shards, bucket)
    seen: dict[int, list[tuple[int, int]]] = {i: [] for i in range(len(sizes))}
    for shard in planned:
        for index, held in enumerate(shard.buckets):
            end = 0
            assert held.index == index
            for cut in held.slices:
                assert cut.offset % OFFSET_BYTES == 0
                assert cut.offset >= end
                assert cut.start % ALIGNMENT == 0
                end = cut.offset + (cut.stop - cut.start) * sizes[cut.parameter][1]
                seen[cut.parameter].append((cut.start, cut.stop))
            assert end <= held.nbytes <= max(bucket, ALIGNMENT * 8)
    for index, (numel, _) in enumerate(sizes):
        position = 0
        for start, stop in sorted(seen[index]):
            assert start == position < stop
            position = stop
        assert position == numel
    loads = [s.nbytes for s in planned]
    assert max(loads) - min(loads) <= max(bucket, ALIGNMENT * 8) + OFFSET_BYTES


def test_the_last_parameters_come_first() -> None:
    (shard,) = plan([Parameter("first", 10, 4), Parameter("last", 10, 4)], 1, 1 << 20)
    assert [c.parameter for c in shard.buckets[0].slices] == [1, 0]
