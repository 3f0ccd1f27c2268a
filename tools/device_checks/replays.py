"""Decodes through a captured graph, held against eager ones on the same card."""

from collections.abc import Callable
from pathlib import Path

from services.task_executor.devices.base import DecodeGraph, Device
from tools.device_checks.verdict import DIFFERS, OK, Found
from tools.device_checks.whole_model import Runner

REPLAYS = 48


def replays_in_a_row(
    folder: Path, device: Device, before_each: Callable[[DecodeGraph], None] | None = None
) -> Found:
    """Lengths rise with every replay: one that reads those of its neighbour says other tokens."""
    eager, replayed = Runner(folder, device), Runner(folder, device)
    graph = replayed.capture()
    eager.prefill()
    replayed.prefill()
    worst = 0.0
    for _ in range(REPLAYS):
        if before_each is not None:
            before_each(graph)
        wanted, got = eager.decode(), replayed.decode(graph)
        worst = max(worst, float((wanted - got).abs().max() / wanted.abs().max()))
    same = eager.batch.tokens == replayed.batch.tokens
    detail = f"{REPLAYS} replays, worst difference {worst:.1e}, tokens {'same' if same else 'not'}"
    return (OK if same else DIFFERS), detail
