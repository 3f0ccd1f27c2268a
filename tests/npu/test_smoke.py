"""The script for the first card, run where there is none: its checks pass over the references."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.task_executor.devices.npu.device import NpuDevice
from tests.npu.simulated_graph import simulated_graphs
from tools import device_smoke
from tools.device_checks import npu_probes, replays, whole_model
from tools.device_checks.opening import on_card
from tools.device_checks.verdict import FAILED, OK, judge


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with whole_model.checkpoint() as folder:
        yield folder


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_smoke, "DECODES", 2)
    monkeypatch.setattr(replays, "REPLAYS", 6)


def test_every_operation_and_a_model_are_right(folder: Path) -> None:
    with simulated_graphs() as mode:
        found = list(device_smoke.verdicts(on_card("npu"), folder))
    assert [it.name for it in found if it.outcome != OK] == []
    assert mode.without_kernel == set()


def test_a_wrong_kernel_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgets_the_weight(self: object, inputs: object, weight: object, epsilon: object) -> object:
        return inputs

    monkeypatch.setattr(NpuDevice, "rms_norm", forgets_the_weight)
    with simulated_graphs():
        found = list(device_smoke.verdicts(on_card("npu"), folder))
    bad = {it.name for it in found if it.is_bad}
    assert bad == {"rms_norm", "rms_norm of heads", "a whole model"}


def test_replays_are_held_against_eager_steps(folder: Path) -> None:
    with simulated_graphs():
        device = NpuDevice(1)
        verdict = judge("replays", lambda: replays.replays_in_a_row(folder, device))
        free = judge("replays", lambda: npu_probes.replays_that_wait_for_nobody(folder, device))
    assert verdict.outcome == OK and "6 replays" in verdict.detail, verdict
    assert not free.is_bad


def test_open_questions_reach_the_kernels(folder: Path) -> None:
    """The references answer documented arguments only, and say so here."""
    with simulated_graphs():
        device = NpuDevice(1)
        asked = npu_probes.probes(folder, device)
        found = [judge(it, asked[it]) for it in ("negative slots", "windows of decodes")]
    for verdict in found:
        assert verdict.outcome == FAILED and "AssertionError" in verdict.detail
