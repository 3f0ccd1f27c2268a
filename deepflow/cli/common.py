"""What every verb shares: the data folder option, and one way to say what went wrong."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

EXIT_FAILED = 1
EXIT_BAD_OPTION = 2
EXIT_CANNOT_START = 3
EXIT_KILLED = 130

DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="DEEPFLOW_DATA_DIR",
        metavar="FOLDER",
        show_default="$XDG_STATE_HOME/deepflow or ~/.local/state/deepflow",
        help="Folder of the stack: its records, secrets, logs and socket. One stack runs in one.",
    ),
]


def fail(message: str, exit_code: int = EXIT_FAILED) -> NoReturn:
    """End with one sentence on stderr."""
    sys.stderr.write(f"deepflow: {message}\n")
    raise typer.Exit(exit_code)
