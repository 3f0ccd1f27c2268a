"""What the master and the device did when, step by step: for the benchmark's trace."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MICROSECONDS = 1e6


@dataclass(slots=True)
class StepSpan:
    """Seconds of the monotonic clock."""

    step: int
    sequences: int
    tokens: int
    planned: tuple[float, float]  # from, to
    ran: tuple[float, float] = (0.0, 0.0)
    applied: tuple[float, float] = (0.0, 0.0)
    is_last: bool = False  # nobody was left after it, so that the device may rest
    # Of each sequence: the tokens that its last one attends to, itself included.
    contexts: Sequence[int] = ()


@dataclass(slots=True)
class StepTrace:
    spans: list[StepSpan] = field(default_factory=list)  # in the order in which they ran

    def gap_fraction(self) -> float:
        """How much of its time the device stood still between steps although there was work."""
        pairs = list(zip(self.spans, self.spans[1:], strict=False))
        gaps = sum(max(0.0, b.ran[0] - a.ran[1]) for a, b in pairs if not a.is_last)
        busy = sum(end - begin for begin, end in (span.ran for span in self.spans))
        return gaps / (gaps + busy) if busy else 0.0

    def master_fraction(self) -> float:
        """The master's own time, planning and taking in, beside that of the steps."""
        master = sum(
            (s.planned[1] - s.planned[0]) + (s.applied[1] - s.applied[0]) for s in self.spans
        )
        busy = sum(end - begin for begin, end in (span.ran for span in self.spans))
        return master / busy if busy else 0.0

    def write(self, path: Path) -> None:
        """In Chrome's trace format: open it in Perfetto or chrome://tracing."""
        events = [_name_thread(1, "device"), _name_thread(2, "master")]
        for span in self.spans:
            facts = {"sequences": span.sequences, "tokens": span.tokens}
            name = f"step {span.step}"
            events.append(_event(name, 1, span.ran, facts))
            events.append(_event(f"plan {span.step}", 2, span.planned, facts))
            events.append(_event(f"apply {span.step}", 2, span.applied, facts))
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _event(name: str, thread: int, during: tuple[float, float], facts: Any) -> dict[str, Any]:
    began, ended = during
    return {
        "name": name,
        "ph": "X",
        "pid": 1,
        "tid": thread,
        "ts": began * _MICROSECONDS,
        "dur": (ended - began) * _MICROSECONDS,
        "args": facts,
    }


def _name_thread(thread: int, name: str) -> dict[str, Any]:
    return {"name": "thread_name", "ph": "M", "pid": 1, "tid": thread, "args": {"name": name}}
