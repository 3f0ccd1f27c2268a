"""Decodes captured on the card beside serving: what a replay says, and what it leaves alone."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from services.task_executor.devices.base import Device
from services.task_executor.flowserve.models.base import Model
from services.task_executor.flowserve.models.graphed import DECODES_BEFORE_CAPTURE, GraphedModel
from tests.npu.checkpoints import ODD, prompt, write
from tests.npu.rig import Rig, Running, run_mixed

pytestmark = pytest.mark.gpu

PROMPTS = [prompt(150, 1), prompt(114, 2), prompt(112, 3)]
BLOCKS_PER_ROW = 3
AFTER = 12  # decodes once all graphs are there


class Thread:
    """Captures as the engine does, in a thread; the test may wait for its end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def __call__(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    @property
    def has_begun(self) -> bool:
        return bool(self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def graphed(beside: Thread) -> Callable[[Rig, Model], Model]:
    def wrap(rig: Rig, model: Model) -> Model:
        return GraphedModel(
            model,
            rig.device,
            rig.kv,
            max_sequences=4,
            blocks_per_row=BLOCKS_PER_ROW,
            run_beside=beside,
        )

    return wrap


def model_of(rig: Rig) -> GraphedModel:
    assert isinstance(rig.model, GraphedModel)
    return rig.model


def fill_with_nan(rig: Rig) -> None:
    for kv in rig.kv:
        kv.keys.fill_(torch.nan)
        kv.values.fill_(torch.nan)


def decode(rig: Rig, rows: Sequence[Running], steps: int) -> None:
    for _ in range(steps):
        rig.advance([(it, 1) for it in rows])


def check_alike(got: Sequence[Running], wanted: Sequence[Running]) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.token_ids == other.token_ids
        said, expected = (torch.stack(it.logits).log_softmax(-1) for it in (one, other))
        assert torch.allclose(said, expected, atol=1e-4)


@pytest.mark.parametrize("name", ODD)
def test_replays_say_what_eager_steps_say(tmp_path: Path, name: str, device: Device) -> None:
    """Two of three rows cross into a new block, which an earlier owner left full of NaN."""
    folder = write(name, tmp_path)
    eager = Rig(folder, device)
    wanted = run_mixed(eager, PROMPTS, DECODES_BEFORE_CAPTURE)
    decode(eager, wanted, AFTER)
    beside = Thread()
    rig = Rig(folder, device, graphed(beside))
    fill_with_nan(rig)
    got = run_mixed(rig, PROMPTS, DECODES_BEFORE_CAPTURE)
    assert beside.has_begun
    beside.join()
    before = model_of(rig).replays
    decode(rig, got, AFTER)
    assert model_of(rig).replays == before + AFTER
    check_alike(got, wanted)


def test_serving_goes_on_while_graphs_are_captured(tmp_path: Path, device: Device) -> None:
    """Steps launch and allocate beside the capture, prefills among them, and say the same."""
    folder = write("llama: gqa-2", tmp_path)
    late = prompt(40, 9)

    def run(rig: Rig) -> list[Running]:
        rows = run_mixed(rig, PROMPTS[:2], DECODES_BEFORE_CAPTURE)
        rows.append(Running(list(late), [20, 21]))
        for _ in range(8):
            rig.advance([(rows[2], 5), (rows[0], 1), (rows[1], 1)])
        decode(rig, rows, AFTER)
        return rows

    wanted = run(Rig(folder, device))
    beside = Thread()
    rig = Rig(folder, device, graphed(beside))
    got = run(rig)
    beside.join()
    assert beside.has_begun
    check_alike(got, wanted)
    before = model_of(rig).replays
    decode(rig, got, 1)
    assert model_of(rig).replays == before + 1


def test_every_size_of_batch_has_its_graph(tmp_path: Path, device: Device) -> None:
    folder = write("qwen2: biases", tmp_path)
    beside = Thread()
    rig, eager = Rig(folder, device, graphed(beside)), Rig(folder, device)
    got = run_mixed(rig, PROMPTS, DECODES_BEFORE_CAPTURE)
    wanted = run_mixed(eager, PROMPTS, DECODES_BEFORE_CAPTURE)
    beside.join()
    for count in (1, 2, 3, 2, 1):
        before = model_of(rig).replays
        decode(rig, got[:count], 2)
        decode(eager, wanted[:count], 2)
        assert model_of(rig).replays == before + 2
    check_alike(got, wanted)


def test_rows_of_padding_write_to_the_trash_block_alone(tmp_path: Path, device: Device) -> None:
    """Three rows replay the graph of four."""
    folder = write("llama: gqa-2", tmp_path)
    beside = Thread()
    rig = Rig(folder, device, graphed(beside))
    rows = run_mixed(rig, PROMPTS, DECODES_BEFORE_CAPTURE)
    beside.join()
    before = [part.clone() for kv in rig.kv for part in (kv.keys, kv.values)]
    places = [(row.blocks[row.computed // 128], row.computed % 128) for row in rows]
    replays = model_of(rig).replays
    decode(rig, rows, 1)
    assert model_of(rig).replays == replays + 1
    for old, new in zip(before, (p for kv in rig.kv for p in (kv.keys, kv.values)), strict=True):
        changed = (old != new).flatten(2).any(-1).nonzero().tolist()
        assert {tuple(it) for it in changed if it[0]} == set(places)


def test_a_replay_with_more_rows_or_blocks_than_any_graph_is_eager(
    tmp_path: Path, device: Device
) -> None:
    folder = write("llama: gqa-2", tmp_path)
    beside = Thread()
    rig = Rig(folder, device, graphed(beside))
    rows = run_mixed(rig, PROMPTS, DECODES_BEFORE_CAPTURE)
    beside.join()
    before = model_of(rig).replays
    decode(rig, [Running(prompt(1, it), [it]) for it in range(15, 20)], 1)
    rig.advance([(rows[0], 1), (Running(prompt(5, 9), [20]), 5)])
    assert model_of(rig).replays == before
