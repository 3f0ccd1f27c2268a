"""Drawing asks the device for no value before the host reads what was drawn."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from services.task_executor.devices.plain import FinishedCopy
from services.task_executor.flowserve.executor.sampling_inputs import sampling_columns
from services.task_executor.flowserve.sampling import ranking, sampler
from services.task_executor.flowserve.sampling.adjustments import TokenMasks
from services.task_executor.flowserve.sampling.host_sample import HostSample, read_sample
from services.task_executor.flowserve.sampling.sampler import sample, settle
from tests.unit.flowserve.sampling_rows import (
    Row,
    pack,
    random_logits,
    random_row,
    sampling,
    tabled,
)

VOCABULARY = 3000  # longer than the head
# Their answer, or the shape of it, hangs on values: a device has to be waited for.
ASKING = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::is_nonzero",
    "aten::equal",
    "aten::_unique2",
    "aten::bincount",
    "aten::repeat_interleave",
)


class Asked(AssertionError):
    pass


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        is_by_flags = name.startswith("aten::index") and any(
            isinstance(it, torch.Tensor) and it.dtype in (torch.bool, torch.uint8)
            for it in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        if name in ASKING or is_by_flags:
            raise Asked(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "ask",
    [
        lambda it: it.sum().item(),
        lambda it: it[it > 0],
        lambda it: it.__setitem__(it > 0, 1.0),
        lambda it: (it > 0).nonzero(),
        lambda it: it.masked_select(it > 0),
        lambda it: bool((it > 0).all()),
    ],
)
def test_the_watch_sees_who_asks(ask: Callable[[torch.Tensor], object]) -> None:
    with NoWaiting(), pytest.raises(Asked):  # type: ignore[no-untyped-call]
        ask(torch.tensor([1.0, -1.0]))


@contextmanager
def never_free(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a device that is not the CPU."""
    with monkeypatch.context() as patch:
        for module in (sampler, ranking):
            patch.setattr(module, "is_free_to_ask", lambda tensor: False)
        with NoWaiting():  # type: ignore[no-untyped-call]
            yield


BATCHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, with logprobs": {"temperature": 0.0, "logprobs": 5},
    "temperature": {"temperature": 0.8},
    "limits": {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "logprobs": 0},
    "penalties": {
        "temperature": 0.7,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "logprobs": 20,
    },
    "biases and ends": {"temperature": 0.0, "logit_bias": {7: 4.0}, "min_tokens": 40},
}


def rows_of(name: str) -> list[Row]:
    return [Row(sampling(seed=it, **BATCHES[name]), [1, 2, 3], [4, 5][: it % 3]) for it in range(5)]


def drawn(logits: torch.Tensor, rows: list[Row], masks: TokenMasks | None = None) -> HostSample:
    """As an executor does, from a table to the host."""
    columns = sampling_columns(*tabled(rows), torch.from_numpy)
    sampled = sample(logits, columns, masks)
    return read_sample(sampled, FinishedCopy)


def check_same(one: HostSample, other: HostSample) -> None:
    assert one.is_valid.tolist() == other.is_valid.tolist()
    assert one.is_sure.tolist() == other.is_sure.tolist()
    kept = one.is_valid
    assert one.token_ids[kept].tolist() == other.token_ids[kept].tolist()
    assert one.logprobs[kept].tobytes() == other.logprobs[kept].tobytes()
    assert (one.tops is None) == (other.tops is None)
    if one.tops is not None and other.tops is not None:
        assert one.tops.token_ids.tolist() == other.tops.token_ids.tolist()
        assert one.tops.logprobs.tobytes() == other.tops.logprobs.tobytes()


@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize("name", BATCHES)
def test_the_usual_ways_to_draw_wait_for_nobody_and_draw_the_same(
    name: str, has_ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random_logits(5, VOCABULARY, 3, has_ties=has_ties)
    rows = rows_of(name)
    usual = drawn(logits, rows)
    with never_free(monkeypatch):
        check_same(drawn(logits, rows), usual)


@pytest.mark.parametrize("seed", range(12))
def test_so_does_every_mixture_with_bad_rows_and_masks_among_them(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    rows = [random_row(rng, VOCABULARY) for _ in range(6)]
    logits = random_logits(6, VOCABULARY, seed, has_ties=seed % 2 == 0)
    logits[seed % 6, 7] = rng.choice([float("nan"), float("inf"), -float("inf")])
    is_allowed = torch.from_numpy(np.random.default_rng(seed).random((2, VOCABULARY)) < 0.1)
    is_allowed[1] = seed % 3 > 0  # a grammar that allows nothing fails its row
    masks = TokenMasks(torch.tensor([1, 4]), pack(is_allowed))
    usual = drawn(logits, rows, masks)
    with never_free(monkeypatch):
        check_same(drawn(logits, rows, masks), usual)


@pytest.mark.parametrize("name", BATCHES)
def test_tensors_without_values_are_enough(name: str) -> None:
    """On a device other than the CPU nothing is left out, whatever the values may be."""

    def to_device(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to("meta")

    columns = sampling_columns(*tabled(rows_of(name)), to_device)
    sampled = sample(torch.empty(5, VOCABULARY, device="meta"), columns)
    assert sampled.token_ids.shape == sampled.logprobs.shape == sampled.is_sure.shape == (5,)
    assert (sampled.alternatives is not None) == bool(BATCHES[name].get("logprobs"))


def test_who_is_not_sure_is_drawn_from_all_candidates() -> None:
    """Flat logits: the head holds a third of the draws, and the order is that of ids."""
    rows = [Row(sampling(seed=it, temperature=1.0), [1], []) for it in range(30)]
    rows[4] = Row(sampling(temperature=0.0), [1], [])
    logits = torch.zeros(30, VOCABULARY)
    columns = sampling_columns(*tabled(rows), torch.from_numpy)
    assert columns.drawing is not None and columns.drawing.rows is not None
    first = sample(logits, columns)
    unsure = (~first.is_sure).nonzero().flatten()
    assert 0 < len(unsure) < 30 and first.is_sure[4]
    settled = settle(first, unsure)
    assert settled.is_sure.all()
    expected = (columns.drawing.draws * VOCABULARY).long()
    expected[4] = 0
    assert torch.equal(settled.token_ids, expected)
    assert torch.equal(settled.logprobs, logits.log_softmax(-1)[:, 0])
    kept = first.is_sure
    assert torch.equal(settled.token_ids[kept], first.token_ids[kept])
