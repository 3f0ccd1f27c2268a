"""What a card does with a graph, on the CPU: capturing computes nothing, replaying computes it all.

torch_npu records, replays and updates for real, over stubs that do nothing. Beside it the mode
keeps what was captured, and once a replay got its update it runs that: with the lengths that the
update gave, in the memory that the capture saw. What a card would refuse fails here too: reading
the host's memory or waiting for the device inside a capture, a replay before the last one was
updated.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch_npu
from torch.utils._pytree import tree_leaves, tree_map

from tests.npu.on_cpu import Call, NpuOnCpu, compute, is_npu, over_same_bytes

ATTENTION = "npu::npu_fused_infer_attention_score"
UPDATED = ("actual_seq_lengths", "actual_seq_lengths_kv")


@dataclass
class Tape:
    calls: list[tuple[Call, Any]] = field(default_factory=list)  # with what came out at capture
    updates: list[dict[str, Any]] = field(default_factory=list)  # of attention, in order
    is_waiting: bool = False  # replayed, and not updated yet

    def play(self) -> None:
        assert self.is_waiting, "an update without a replay"
        self.is_waiting = False
        updates = iter(self.updates)
        for call, output in self.calls:
            if call.name == ATTENTION:
                call = Call(call.func, call.args, call.kwargs | next(updates))
            result = compute(call)
            if output is not None:
                tree_map(_overwrite, output, result)
        assert next(updates, None) is None
        self.updates.clear()


def _overwrite(old: Any, new: Any) -> None:
    if is_npu(old):
        over_same_bytes(old).copy_(over_same_bytes(new))


class GraphsOnCpu(NpuOnCpu):  # type: ignore[no-untyped-call]
    """One a thread; the tapes are shared."""

    current = threading.local()
    tapes: ClassVar[dict[int, Tape]] = {}

    def run(self, call: Call) -> Any:
        state = self.current
        if getattr(state, "capturing", None) is not None:
            return self._capture(call, state.capturing)
        if getattr(state, "updating", None) is not None:
            assert call.name == ATTENTION, f"{call.name} ran inside an update"
            state.updating.updates.append({key: call.kwargs[key] for key in UPDATED})
            return tuple(call.kwargs["out"])
        return super().run(call)

    def _capture(self, call: Call, tape: Tape) -> Any:
        for leaf in tree_leaves((call.args, call.kwargs)):
            if isinstance(leaf, torch.Tensor) and not is_npu(leaf):
                raise RuntimeError(f"{call.name} reads host memory inside a capture")
        if call.name == "aten::_local_scalar_dense":
            raise RuntimeError("the host waits for the device inside a capture")
        if call.name == ATTENTION:
            tape.calls.append((call, None))
            return tuple(call.kwargs["out"])
        if call.writes_only:
            tape.calls.append((call, None))
            return call.args[0] if call.func._schema.returns else None
        output = super().run(call)
        for leaf in tree_leaves(output):
            if is_npu(leaf) and leaf.is_floating_point():
                over_same_bytes(leaf).fill_(torch.nan)  # nothing was computed
        tape.calls.append((call, output))
        return output


@contextmanager
def simulated_graphs() -> Iterator[GraphsOnCpu]:
    graph, state, tapes = torch_npu.npu.NPUGraph, GraphsOnCpu.current, GraphsOnCpu.tapes
    begin, end, replay, update = graph.capture_begin, graph.capture_end, graph.replay, graph.update

    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        state.capturing = tapes[id(self)] = Tape()

    def capture_end(self: Any) -> None:
        state.capturing = None
        end(self)

    def replay_(self: Any) -> None:
        tape = tapes[id(self)]
        assert not tape.is_waiting, "a replay before the last one got its update"
        replay(self)
        tape.is_waiting = True

    def update_(self: Any, cpu_update_input: Any) -> None:
        state.updating = tapes[id(self)]
        try:
            update(self, cpu_update_input)
        finally:
            state.updating = None
        tapes[id(self)].play()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "capture_begin", capture_begin)
        patch.setattr(graph, "capture_end", capture_end)
        patch.setattr(graph, "replay", replay_)
        patch.setattr(graph, "update", update_)
        tapes.clear()
        with GraphsOnCpu() as mode:
            yield mode
