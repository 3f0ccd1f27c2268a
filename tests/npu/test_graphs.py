"""Decodes through captured graphs say what eager ones say; capturing happens beside serving."""

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch_npu

from services.task_executor.devices.base import AttentionInputs, AttentionStep
from services.task_executor.devices.cpu.device import CpuDevice
from services.task_executor.devices.npu.attention import GraphedAttentionStep
from services.task_executor.devices.npu.device import NpuDevice
from services.task_executor.devices.npu.graph import GraphError, NpuDecodeGraph
from services.task_executor.flowserve.models.base import Model
from services.task_executor.flowserve.models.graphed import DECODES_BEFORE_CAPTURE, GraphedModel
from tests.npu.checkpoints import prompt, write
from tests.npu.rig import Rig, Running, run_mixed
from tests.npu.simulated_graph import GraphsOnCpu, simulated_graphs

PROMPTS = [prompt(150, 1), prompt(114, 2), prompt(112, 3)]
BLOCKS_PER_ROW = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write("qwen3: head norms, yarn rope, wide heads", tmp_path)


class Beside:
    """Keeps the work until the test lets a thread do it."""

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None

    def __call__(self, work: Callable[[], None]) -> None:
        self.work = work

    def finish(self) -> None:
        assert self.work is not None
        work = self.work

        def run() -> None:
            with GraphsOnCpu():
                work()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()


def graphed(beside: Beside) -> Callable[[Rig, Model], Model]:
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


def test_replays_say_what_the_cpu_says(folder: Path) -> None:
    """Two of three rows cross into a new block, which an earlier owner left full of NaN."""
    steps = DECODES_BEFORE_CAPTURE + 12
    wanted = run_mixed(Rig(folder, CpuDevice(1)), PROMPTS, steps)
    beside = Beside()
    with simulated_graphs():
        rig = Rig(folder, NpuDevice(1, torch.float32), graphed(beside))
        for kv in rig.kv:
            kv.keys.fill_(torch.nan)
            kv.values.fill_(torch.nan)
        got = run_mixed(rig, PROMPTS, DECODES_BEFORE_CAPTURE)
        assert model_of(rig).replays == 0
        beside.finish()
        for _ in range(12):
            rig.advance([(it, 1) for it in reversed(got)])
        assert model_of(rig).replays == 12
        rig.advance([(got[0], 1)])  # another size of batch: another graph
        assert model_of(rig).replays == 13
    for one, other in zip(got, wanted, strict=True):
        assert one.token_ids[: len(other.token_ids)] == other.token_ids
        logits = torch.stack(one.logits[: len(other.logits)]).log_softmax(-1)
        assert torch.allclose(logits, torch.stack(other.logits).log_softmax(-1), atol=1e-4)


def test_steps_that_no_graph_runs_stay_eager(folder: Path) -> None:
    beside = Beside()
    with simulated_graphs() as mode:
        rig = Rig(folder, NpuDevice(1, torch.float32), graphed(beside))
        rows = run_mixed(rig, PROMPTS, DECODES_BEFORE_CAPTURE)
        beside.finish()
        attended = mode.calls["npu::npu_fused_infer_attention_score"]
        late = Running(prompt(5, 9), [20])
        rig.advance([(rows[0], 1), (late, 5)])  # a prefill among them
        five = [Running(prompt(1, it), [it]) for it in range(15, 20)]
        rig.advance([(it, 1) for it in five])  # more rows than any graph has
        assert model_of(rig).replays == 0
        eager = mode.calls["npu::npu_fused_infer_attention_score"] - attended
        assert eager == 2 * rig.spec.num_layers
    assert len(rows) == 3


def test_a_capture_that_fails_leaves_everything_eager(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no streams are left")

    beside = Beside()
    with simulated_graphs():
        rig = Rig(folder, NpuDevice(1, torch.float32), graphed(beside))
        monkeypatch.setattr(rig.device, "capture_decode", refuse)
        rows = run_mixed(rig, PROMPTS, DECODES_BEFORE_CAPTURE)
        beside.finish()
        rig.advance([(it, 1) for it in rows])
        assert model_of(rig).replays == 0
    assert "decodes stay eager" in caplog.text and "no streams are left" in caplog.text


def test_a_capture_that_cannot_be_updated_is_refused(folder: Path) -> None:
    """An attention call that torch_npu did not keep apart would answer for old lengths."""
    with simulated_graphs():
        rig = Rig(folder, NpuDevice(1, torch.float32))
        calls = iter(range(100))

        def forward(
            token_ids: torch.Tensor, positions: torch.Tensor, attention: AttentionStep
        ) -> torch.Tensor:
            hidden = rig.model.forward(token_ids, positions, attention, rig.kv)
            if next(calls):  # the capture, after the first call
                assert isinstance(attention, GraphedAttentionStep)
                attention.layers.append(rig.kv[0])
            return hidden

        with torch.inference_mode(), pytest.raises(GraphError, match=r"3 attention calls .* of 4"):
            rig.device.capture_decode(forward, 2, BLOCKS_PER_ROW)


def test_the_last_replay_is_over_before_the_next_update(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would read the lengths of the next step."""
    order: list[str] = []
    event, graph = torch_npu.npu.Event, torch_npu.npu.NPUGraph
    with simulated_graphs():
        rig = Rig(folder, NpuDevice(1, torch.float32))

        def forward(
            token_ids: torch.Tensor, positions: torch.Tensor, attention: AttentionStep
        ) -> torch.Tensor:
            return rig.model.forward(token_ids, positions, attention, rig.kv)

        with torch.inference_mode():
            decode = rig.device.capture_decode(forward, 1, BLOCKS_PER_ROW)
            for name, kind in (("synchronize", event), ("replay", graph), ("update", graph)):
                monkeypatch.setattr(kind, name, _noting(order, name, getattr(kind, name)))
            zero = torch.zeros(1, dtype=torch.int64, device=rig.device.torch_device)
            for length in (1, 2):
                tables = torch.ones(1, 1, dtype=torch.int32)
                inputs = AttentionInputs(128, [1], [length], tables, torch.tensor([127 + length]))
                decode.replay(zero, zero, inputs)
    assert order == ["replay", "update", "synchronize", "replay", "update"]


def test_graphs_share_memory_and_new_ones_come_after_all_are_gone(folder: Path) -> None:
    with simulated_graphs() as mode, torch.inference_mode():
        rig = Rig(folder, NpuDevice(1, torch.float32))

        def forward(
            token_ids: torch.Tensor, positions: torch.Tensor, attention: AttentionStep
        ) -> torch.Tensor:
            return rig.model.forward(token_ids, positions, attention, rig.kv)

        def capture(rows: int) -> NpuDecodeGraph:
            graph = rig.device.capture_decode(forward, rows, BLOCKS_PER_ROW)
            assert isinstance(graph, NpuDecodeGraph)
            return graph

        first, second = capture(1), capture(2)
        assert first.pool == second.pool
        gone = first.pool
        del first, second
        mode.tapes.clear()
        gc.collect()
        assert capture(1).pool != gone


def _noting(order: list[str], name: str, call: Callable[..., object]) -> Callable[..., object]:
    def noted(*args: object, **kwargs: object) -> object:
        order.append(name)
        return call(*args, **kwargs)

    return noted
