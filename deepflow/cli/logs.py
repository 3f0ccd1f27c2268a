"""`deepflow logs`: the end of every process's log, and what comes after it."""

from pathlib import Path
from typing import Annotated

import typer

from deepflow.cli.common import EXIT_BAD_OPTION, DataDirOption, fail

FOLLOW_SECONDS = 0.2
# Enough for many lines without reading a log of gigabytes.
TAIL_BYTES_MAX = 4 * 1024 * 1024


def logs(
    name: Annotated[
        str | None,
        typer.Argument(help="Process, as 'deepflow status' names it; all of them without one."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of each log.")] = 20,
    data_dir: DataDirOption = None,
) -> None:
    """Show the logs of a stack; it need not run any more.

    \b
      deepflow logs te-0 -n 100      the last 100 lines of one task executor
      deepflow logs -f               everything, as it is written
    """
    import time

    from deepflow.local.data_dir import DataDir, default_root

    folder = DataDir(data_dir or default_root()).logs
    files = _files(folder, name)
    offsets = {path: _show_end(path, lines, with_name=name is None) for path in files}
    try:
        while follow:
            time.sleep(FOLLOW_SECONDS)
            _show_new(folder, name, offsets)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _files(folder: Path, name: str | None) -> list[Path]:
    present = sorted(folder.glob("*.log"))
    if not present:
        fail(f"there are no logs in {folder}: run 'deepflow up', or name a folder with --data-dir")
    if name is None:
        return present
    wanted = folder / f"{name}.log"
    if wanted not in present:
        known = ", ".join(path.stem for path in present)
        fail(f"there is no log of {name!r}; there are: {known}", EXIT_BAD_OPTION)
    return [wanted]


def _show_end(path: Path, lines: int, *, with_name: bool) -> int:
    """Prints the last lines; answers how far the file was read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - TAIL_BYTES_MAX))
        end = file.read(size - file.tell()).decode(errors="replace").splitlines()
    for line in end[len(end) - lines :] if lines else []:
        _show(path, line, with_name)
    return size


def _show_new(folder: Path, name: str | None, offsets: dict[Path, int]) -> None:
    for path in _files(folder, name):  # a process may have come up since
        offset = offsets.get(path, 0)
        if path.stat().st_size < offset:  # it was set aside and begun anew
            offset = 0
        with path.open("rb") as file:
            file.seek(offset)
            # A line that is only half written is left for the next look.
            whole, newline, _ = file.read().rpartition(b"\n")
        offsets[path] = offset + len(whole) + len(newline)
        for line in whole.decode(errors="replace").splitlines():
            _show(path, line, name is None)


def _show(path: Path, line: str, with_name: bool) -> None:
    print(f"{path.stem:<16} | {line}" if with_name else line, flush=True)
