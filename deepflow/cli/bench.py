"""`deepflow bench`: measure this machine, beside a ceiling or a peer, in one run."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deepflow.cli.common import EXIT_FAILED, fail

if TYPE_CHECKING:
    from deepflow.bench.mesh import MeshReport

app = typer.Typer(
    help="Measure the platform on this machine. Each benchmark prints a table for people and one"
    " JSON object as its last line.",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print only the JSON object.")]


@app.command()
def mesh(
    streams: Annotated[int, typer.Option(min=1, help="Clients that stream at a time.")] = 64,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens in each answer.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of mesh and ceiling in turn.")] = 5,
    round_seconds: Annotated[float, typer.Option(min=0.5, help="Length of one round.")] = 3.0,
    open_loop_seconds: Annotated[
        float, typer.Option(min=1.0, help="Length of the run that measures time to first token.")
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """The whole mesh, all features on, beside bare Starlette that sends the same events.

    Starts a stack of its own with the device emulated:zero, so nothing needs to run before.
    """
    from deepflow.bench.mesh import MeshOptions, run  # late: psutil and asyncio parts
    from deepflow.bench.sse_client import BenchError

    console = Console(stderr=True, quiet=as_json)
    options = MeshOptions(streams, tokens, rounds, round_seconds, open_loop_seconds)
    try:
        report = run(options, say=console.print)
    except BenchError as error:
        fail(str(error), EXIT_FAILED)
    if not as_json:
        _show(report)
    print(json.dumps(report.as_dict()))


def _show(report: "MeshReport") -> None:
    table = Table(title="mesh (emulated:zero) beside bare Starlette")
    for column in ("", "mesh", "bare Starlette", "ratio / added"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        "tokens a second",
        f"{report.tok_s:,.0f}",
        f"{report.ceiling_tok_s:,.0f}",
        f"{report.ratio:.2f}",
    )
    for name, mine, bare, added in (
        ("p50", report.ttft_ms_p50, report.ceiling_ttft_ms_p50, report.ttft_overhead_ms_p50),
        ("p99", report.ttft_ms_p99, report.ceiling_ttft_ms_p99, report.ttft_overhead_ms_p99),
    ):
        table.add_row(
            f"time to first token, {name}", f"{mine:.1f} ms", f"{bare:.1f} ms", f"+{added:.1f} ms"
        )
    for name, cost in sorted(report.cpu_us_per_token_by_process.items(), key=lambda x: -x[1]):
        table.add_row(f"CPU per token, {name}", f"{cost:.1f} µs", "", "")
    Console().print(table)
