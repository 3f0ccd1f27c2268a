"""What a person asked a stack to serve, and how the stack tells how far it is."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deepflow import clock


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What the stack is to serve."""

    name: str
    source: Path
    device: str
    task_executors: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A stack that answers."""

    model: str
    device: str
    has_chat_template: bool
    urls: list[str]
    data_dir: Path
    log_dir: Path
    pid: int
    seconds: float
    step_seconds: dict[str, float]


class Reporter(Protocol):
    """Whoever shows the life of a stack to a person or a script."""

    def begin(self, step: str) -> None: ...

    def detail(self, text: str) -> None:
        """What the step that began last waits for."""

    def end(self, step: str, seconds: float) -> None: ...

    def note(self, text: str) -> None:
        """A line worth knowing that belongs to no step."""

    def ready(self, ready: Ready) -> None: ...

    def stopping(self) -> None: ...

    def stopped(self) -> None: ...


class Steps:
    """The named pieces of a start-up: each shown while it runs and timed when it ends."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._reporter.begin(name)
        started = clock.monotonic()
        yield
        self.seconds[name] = clock.monotonic() - started
        self._reporter.end(name, self.seconds[name])
