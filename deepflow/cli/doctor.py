"""`deepflow doctor`: is everything here that a stack needs, and what should be done about it."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from deepflow.cli.common import EXIT_FAILED, DataDirOption

if TYPE_CHECKING:
    from deepflow.local.checkup.finding import Finding

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    data_dir: DataDirOption = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The HTTP port that is wanted.")
    ] = 8000,
    as_json: Annotated[
        bool, typer.Option("--json", help='One JSON object: "findings", a list, and "ok".')
    ] = False,
) -> None:
    """Look at this machine and say what is missing, and how to get it.

    Ends with 1 where something cannot work, with 0 where it can; a warning
    is about speed or room. Nothing is changed.

    \b
      deepflow doctor
      deepflow doctor --json | jq '.findings[] | select(.level != "ok")'
    """
    from deepflow.local.checkup.certificates import examine_certificates
    from deepflow.local.checkup.finding import has_failed
    from deepflow.local.checkup.machine import examine_machine
    from deepflow.local.checkup.software import examine_software
    from deepflow.local.checkup.stack import examine_stack
    from deepflow.local.data_dir import DataDir, default_root

    data = DataDir(data_dir or default_root())
    findings = [*examine_software(), *examine_machine(), *examine_stack(data, port)]
    findings += examine_certificates(data)
    is_ok = not has_failed(findings)
    if as_json:
        import msgspec

        print(json.dumps({"ok": is_ok, "findings": msgspec.to_builtins(findings)}))
    else:
        _show(findings)
    if not is_ok:
        raise typer.Exit(EXIT_FAILED)


def _show(findings: "list[Finding]") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for finding in findings:
        line = Text(f"{finding.level.value:<5}", style=_COLOURS[finding.level.value])
        line.append(f"{finding.about:<15} {finding.says}", style="default")
        console.print(line, soft_wrap=True, highlight=False)
        if finding.do:
            console.print(f"{'':<21}→ {finding.do}", soft_wrap=True, highlight=False, markup=False)
    counts = [sum(it.level == level for it in findings) for level in ("warn", "fail")]
    warnings, failures = counts
    words = f"{_counted(warnings, 'warning')}, {_counted(failures, 'failure')}"
    console.print(words, highlight=False)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
