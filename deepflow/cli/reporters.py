"""Three ways to show the life of a stack: for a terminal, for a log, for a script."""

import contextlib
import dataclasses
import json
import os
import sys
from typing import Any, Protocol

from rich.console import Console
from rich.status import Status

from deepflow.cli.greeting import greeting
from deepflow.local.progress import Ready, Reporter

STEP_WIDTH = 16


class UpReporter(Reporter, Protocol):
    def failed(self, message: str, log_file: str = "", log_tail: str = "") -> None: ...


def reporter_for(as_json: bool) -> UpReporter:
    if as_json:
        return JsonReporter()
    return TerminalReporter() if sys.stdout.isatty() else PlainReporter()


class PlainReporter:
    """One line a step; nothing moves."""

    def begin(self, step: str) -> None:
        pass

    def detail(self, text: str) -> None:
        pass

    def end(self, step: str, seconds: float) -> None:
        write_line(f"  {step:<{STEP_WIDTH}} {seconds:6.2f} s")

    def note(self, text: str) -> None:
        write_line(f"  {text}")

    def ready(self, ready: Ready) -> None:
        write_line(greeting(ready))

    def stopping(self) -> None:
        write_line("stopping: running requests may end, then every process does")

    def stopped(self) -> None:
        write_line("stopped")

    def failed(self, message: str, log_file: str = "", log_tail: str = "") -> None:
        write_line(f"deepflow: {message}", to_stderr=True)
        if log_tail:
            write_line(f"the end of {log_file}:\n{_indented(log_tail)}", to_stderr=True)


class TerminalReporter(PlainReporter):
    """The same, with the running step and what it waits for in a line that moves."""

    def __init__(self) -> None:
        self._console = Console()
        self._status: Status | None = None
        self._step = ""

    def begin(self, step: str) -> None:
        self._step = step
        if self._status is None:
            self._status = self._console.status(step)
            self._status.start()
        self._status.update(f"[bold]{step}[/bold]")

    def detail(self, text: str) -> None:
        if self._status is not None:
            self._status.update(f"[bold]{self._step}[/bold] [dim]{text[:100]}[/dim]")

    def end(self, step: str, seconds: float) -> None:
        self._console.print(
            f"  [green]✓[/green] {step:<{STEP_WIDTH}} [cyan]{seconds:6.2f} s[/cyan]"
        )

    def note(self, text: str) -> None:
        self._console.print(f"  [yellow]·[/yellow] {text}", soft_wrap=True, highlight=False)

    def ready(self, ready: Ready) -> None:
        self._stop_status()
        super().ready(ready)

    def stopping(self) -> None:
        self._stop_status()
        super().stopping()

    def _stop_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


class JsonReporter:
    def begin(self, step: str) -> None:
        _event("step_started", step=step)

    def detail(self, text: str) -> None:
        pass

    def end(self, step: str, seconds: float) -> None:
        _event("step_done", step=step, seconds=round(seconds, 4))

    def note(self, text: str) -> None:
        _event("note", text=text)

    def ready(self, ready: Ready) -> None:
        _event("ready", url=ready.urls[0], **dataclasses.asdict(ready))

    def stopping(self) -> None:
        _event("stopping")

    def stopped(self) -> None:
        _event("stopped")

    def failed(self, message: str, log_file: str = "", log_tail: str = "") -> None:
        _event("failed", message=message, log_file=log_file, log_tail=log_tail)
        write_line(f"deepflow: {message}", to_stderr=True)


def write_line(text: str, *, to_stderr: bool = False) -> None:
    """A reader that left (a closed terminal, a pipe's end) never keeps the stack from stopping."""
    stream = sys.stderr if to_stderr else sys.stdout
    try:
        stream.write(text + "\n")
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _event(event: str, **fields: Any) -> None:
    write_line(json.dumps({"event": event, **fields}, default=str))


def _indented(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.splitlines())
