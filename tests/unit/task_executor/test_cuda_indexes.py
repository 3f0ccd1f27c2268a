"""What the attention kernels are told of a step: every token once, in its place, one upload."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.base import AttentionInputs
from services.task_executor.devices.cuda import limits
from services.task_executor.devices.cuda.indexes import items_of, upload
from services.task_executor.devices.cuda.tiles import (
    SPLITS_MAX,
    SPLITS_MIN,
    Splits,
    choose_splits,
    choose_tiles,
    padded,
)
from tests.unit.flowserve.model_specs import write_config

ENTRIES = st.lists(
    st.integers(1, 90).flatmap(
        lambda length: st.tuples(st.just(1) | st.integers(1, length), st.just(length))
    ),
    min_size=1,
    max_size=8,
)


def inputs_of(entries: Sequence[tuple[int, int]], width: int = 3) -> AttentionInputs:
    counts = [count for count, _ in entries]
    return AttentionInputs(
        16,
        counts,
        [length for _, length in entries],
        torch.arange(len(entries) * width, dtype=torch.int32).view(-1, width),
        torch.arange(sum(counts)) + 1000,
    )


@given(entries=ENTRIES, tokens_per_item=st.integers(1, 20))
def test_items_cover_every_token_once(entries: list[tuple[int, int]], tokens_per_item: int) -> None:
    chunks, decodes = items_of(inputs_of(entries), tokens_per_item)
    assert len(decodes) == sum(count == 1 for count, _ in entries)
    assert (decodes[:, 2] == 1).all() and (chunks[:, 2] <= tokens_per_item).all()
    covered = {}
    for entry, token, count, position in np.concatenate([chunks, decodes]).tolist():
        assert count > 0
        for ahead in range(count):
            assert token + ahead not in covered
            covered[token + ahead] = (entry, position + ahead)
    wanted = [
        (entry, position)
        for entry, (count, length) in enumerate(entries)
        for position in range(length - count, length)
    ]
    assert [covered[token] for token in range(len(wanted))] == wanted


@given(entries=ENTRIES, width=st.integers(1, 7))
def test_one_upload_holds_everything(entries: list[tuple[int, int]], width: int) -> None:
    inputs = inputs_of(entries, width)
    uploads: list[np.ndarray] = []

    def to_device(values: np.ndarray) -> torch.Tensor:
        uploads.append(values)
        return torch.from_numpy(values.copy())

    indexes = upload(inputs, 4, to_device)
    assert len(uploads) == 1 and uploads[0].dtype == np.int32
    assert indexes.slots.tolist() == inputs.slots.tolist()
    assert torch.equal(indexes.tables, inputs.block_tables)
    chunks, decodes = items_of(inputs, 4)
    assert np.array_equal(indexes.chunks, chunks) and np.array_equal(indexes.decodes, decodes)
    longest = max((length for count, length in entries if count == 1), default=0)
    assert indexes.longest_decode == longest
    for part in (indexes.slots, indexes.tables, indexes.chunks, indexes.decodes):
        assert part.storage_offset() % 4 == 0


@given(
    group=st.integers(1, 64),
    head_dim=st.integers(1, limits.HEAD_DIM_MAX),
    itemsize=st.sampled_from([2, 4]),
)
def test_tiles_hold_all_heads_of_a_token_and_are_powers_of_two(
    group: int, head_dim: int, itemsize: int
) -> None:
    tiles = choose_tiles(group, head_dim, itemsize)
    assert tiles.chunk_rows >= group and tiles.decode_rows >= group
    assert head_dim <= padded(head_dim) < 2 * max(head_dim, 16)
    for size in (tiles.chunk_rows, tiles.decode_rows, tiles.keys, padded(head_dim)):
        assert size >= 16 and size & (size - 1) == 0


@given(seen=st.integers(1, 10_000), keys=st.sampled_from([16, 256]), most=st.integers(1, 128))
def test_enough_splits_are_launched_for_every_context(seen: int, keys: int, most: int) -> None:
    """A kernel cuts a context into pieces of a multiple of `keys`, of which there are most."""
    share = math.ceil(math.ceil(seen / most) / keys) * keys
    assert math.ceil(seen / share) <= Splits(keys, most).of(seen) <= most


def test_few_kv_heads_are_split_more() -> None:
    most = [choose_splits(kv_heads, processors=132).most for kv_heads in (1, 4, 8, 64)]
    assert most == [SPLITS_MAX, 66, 33, SPLITS_MIN]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return ModelSpec.from_folder(write_config(tmp_path_factory.mktemp("model"), head_dim=80))


def test_what_the_kernels_do_not_take_is_named(spec: ModelSpec) -> None:
    assert limits.why_not(spec) is None
    assert "heads are 257 wide" in (limits.why_not(replace(spec, head_dim=257)) or "")
    shared = replace(spec, num_heads=65, num_kv_heads=1)
    assert "65 heads share 1 KV heads" in (limits.why_not(shared) or "")


def test_a_cache_whose_slots_cannot_be_counted_is_refused() -> None:
    limits.check_cache(((1 << 27) - 1, 16, 8, 128))
    with pytest.raises(ValueError, match=f"at most {(1 << 27) - 1}"):
        limits.check_cache((1 << 27, 16, 8, 128))
