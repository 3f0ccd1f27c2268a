"""`deepflow up`: the whole mesh in the foreground, until Ctrl-C."""

from pathlib import Path
from typing import Annotated

import typer

from deepflow.cli.common import (
    EXIT_CANNOT_START,
    EXIT_FAILED,
    EXIT_KILLED,
    DataDirOption,
)
from deepflow.cli.model_options import (
    DeviceOption,
    DtypeOption,
    KvDiskOption,
    KvDramOption,
    KvMemoryOption,
    MaxTokensOption,
    NameOption,
    PipelineParallelOption,
    PolicyOption,
    TensorParallelOption,
    ToolFormatOption,
    TpotOption,
    TtftOption,
)


def up(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default="the packaged demo model",
            help="Folder with config.json, the tokenizer and safetensors weights; or a hub id,"
            " ORG/NAME or ORG/NAME@REVISION, which is fetched.",
        ),
    ] = None,
    name: NameOption = None,
    port: Annotated[
        int,
        typer.Option(
            min=1,
            max=65535,
            help="HTTP port. Each further gateway takes the next one, or a free one where that"
            " is taken.",
        ),
    ] = 8000,
    host: Annotated[
        str,
        typer.Option(
            help="Interface of the gateways. Everything else listens on the loopback only."
        ),
    ] = "127.0.0.1",
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "",
    max_tokens: MaxTokensOption = 0,
    kv_memory: KvMemoryOption = "",
    kv_dram: KvDramOption = "",
    kv_disk: KvDiskOption = "",
    tool_format: ToolFormatOption = "",
    tp: TensorParallelOption = 1,
    pp: PipelineParallelOption = 1,
    policy: PolicyOption = "",
    tpot_ms: TpotOption = 0,
    ttft_ms: TtftOption = 0,
    task_executors: Annotated[int, typer.Option(min=1, max=64, help="Replicas of the model.")] = 1,
    job_executors: Annotated[int, typer.Option(min=1, max=64, help="Job executors.")] = 1,
    cluster_managers: Annotated[
        int, typer.Option(min=1, max=5, help="Cluster managers: one leads, the others stand by.")
    ] = 1,
    gateways: Annotated[int, typer.Option(min=1, max=64, help="Gateways.")] = 1,
    liveness_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            max=600,
            help="How long a process may take to say that it is alive; one that does not three"
            " times in a row is killed and started again. 0: never.",
        ),
    ] = 5.0,
    tls: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Speak HTTPS to clients and mutual TLS inside, with what 'deepflow certificates"
            " create FOLDER' made.",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help='One JSON object a line; the one with "event": "ready" counts.'
        ),
    ] = False,
) -> None:
    """Start the mesh on this machine, deploy a model, serve until Ctrl-C.

    Starts gateway, job executor, task executor with its engine, cluster
    manager, kv_store, NATS and Redis as processes of their own; all of them
    end with this command. The first Ctrl-C (or SIGTERM) lets running requests
    end, the second kills at once.

    [bold]Examples[/bold]

    \b
      deepflow up                                 the demo model, port 8000
      deepflow up --model ~/models/Llama-3.2-1B   a model of yours
      deepflow up --model Qwen/Qwen3-0.6B         one from the hub
      deepflow up --task-executors 2 --port 8080  two replicas
      deepflow up --device emulated:ascend-910b   an accelerator's timing only
      deepflow up --tls ./tls                     HTTPS, and TLS inside

    [bold]Exit codes[/bold]

    \b
      0    stopped as asked, everything in peace
      1    the mesh did not come up; the end of the log at fault was printed
      2    an option is wrong
      3    cannot start here: port in use, stack runs already, program missing
      130  killed by a second Ctrl-C
    """
    # Late: --help needs none of this.
    import asyncio

    from deepflow.cli.model_choice import choose_model
    from deepflow.cli.reporters import reporter_for
    from deepflow.local.data_dir import default_root
    from deepflow.local.errors import StackError, StartupFailed
    from deepflow.local.run import run
    from deepflow.local.stack import StackOptions
    from deepflow.local.tls_folder import TlsFolder

    options = StackOptions(
        data_dir or default_root(),
        host,
        port,
        gateways,
        job_executors,
        cluster_managers,
        liveness_seconds,
        TlsFolder(tls.expanduser().absolute()) if tls is not None else None,
    )
    choice = choose_model(
        model,
        name,
        device,
        task_executors,
        dtype=dtype,
        max_tokens=max_tokens,
        kv_memory=kv_memory,
        kv_dram=kv_dram,
        kv_disk=kv_disk,
        tool_format=tool_format,
        tensor_parallel=tp,
        pipeline_parallel=pp,
        policy=policy,
        tpot_ms=tpot_ms,
        ttft_ms=ttft_ms,
        as_json=as_json,
    )
    reporter = reporter_for(as_json)
    try:
        ended_in_peace = asyncio.run(run(options, choice, reporter))
    except StartupFailed as error:
        reporter.failed(str(error), error.log_file, error.log_tail)
        raise typer.Exit(EXIT_FAILED) from error
    except StackError as error:
        reporter.failed(str(error))
        raise typer.Exit(EXIT_CANNOT_START) from error
    raise typer.Exit(0 if ended_in_peace else EXIT_KILLED)
