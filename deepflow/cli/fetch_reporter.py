"""Shows a download: a bar in a terminal, a line now and then in a log, events for a script."""

import contextlib
import json
import sys
from collections.abc import Iterator

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from deepflow.cli.reporters import write_line
from deepflow.core.sizes import format_bytes
from deepflow.hub.fetch import FetchProgress, Watcher

# A log shows every tenth of the way.
PARTS = 10


@contextlib.contextmanager
def fetch_watcher(name: str, as_json: bool) -> Iterator[Watcher]:
    if as_json or not sys.stdout.isatty():
        yield LineWatcher(name, as_json)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TransferSpeedColumn()) as bar:
        yield BarWatcher(bar, name)


class LineWatcher:
    def __init__(self, name: str, as_json: bool) -> None:
        self._name = name
        self._as_json = as_json
        self._told = -1

    def note(self, text: str) -> None:
        write_line(json.dumps({"event": "note", "text": text}) if self._as_json else f"  {text}")

    def progress(self, progress: FetchProgress) -> None:
        part = PARTS * progress.done // max(1, progress.total)
        if part <= self._told:
            return
        self._told = part
        if self._as_json:
            fields = {"done": progress.done, "total": progress.total, "file": progress.file}
            write_line(json.dumps({"event": "fetch", "model": self._name, **fields}))
            return
        done, total = format_bytes(progress.done), format_bytes(progress.total)
        write_line(f"  fetch {self._name} {done} of {total}")


class BarWatcher:
    def __init__(self, bar: Progress, name: str) -> None:
        self._bar = bar
        self._name = name
        self._task = bar.add_task(f"fetch {name}", total=None)

    def note(self, text: str) -> None:
        self._bar.console.print(
            f"  [yellow]·[/yellow] {escape(text)}", soft_wrap=True, highlight=False
        )

    def progress(self, progress: FetchProgress) -> None:
        self._bar.update(
            self._task,
            completed=progress.done,
            total=progress.total,
            description=f"fetch {self._name} [dim]{escape(progress.file)}[/dim]",
        )
