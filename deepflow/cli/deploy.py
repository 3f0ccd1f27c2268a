"""`deepflow deploy`: one more model on a running stack."""

from typing import TYPE_CHECKING, Annotated

import typer

from deepflow.cli.cluster_access import ClusterManagerOption, why
from deepflow.cli.common import EXIT_BAD_OPTION, DataDirOption, fail
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

if TYPE_CHECKING:
    from pathlib import Path

    from deepflow.cli.deploy_reporter import DeployReporter
    from deepflow.local.progress import ModelChoice


def deploy(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder with config.json, the tokenizer and safetensors weights; or a hub id,"
            " ORG/NAME or ORG/NAME@REVISION, which is fetched.",
        ),
    ],
    name: NameOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "",
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            show_default="as many as there are to be; 1 of a new one",
            help="Task executors that hold it.",
        ),
    ] = None,
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
    wait: Annotated[
        bool, typer.Option(help="Stay until it serves, and take it back where it cannot.")
    ] = True,
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help='One JSON object a line; the last is "ready" or "failed".'),
    ] = False,
) -> None:
    """Serve a model beside those that are served already; or change how it is served.

    Returns when every replica is ready. A model that cannot be loaded is taken
    back with the task executor's own words: a new one is withdrawn, a changed
    one is put back to what it was. Deploying the same again changes nothing.

    \b
      deepflow deploy ~/models/Llama-3.2-1B-Instruct --name llama
      deepflow deploy Qwen/Qwen3-0.6B --dtype bfloat16 --max-tokens 8192

    [bold]Exit codes[/bold]

    \b
      0    every replica is ready (with --no-wait: it was accepted)
      1    it did not load and was taken back, or nobody could be asked
      2    the model or an option is wrong
    """
    import asyncio

    from deepflow.cli.deploy_reporter import deploy_reporter_for
    from deepflow.cli.model_choice import choose_model
    from deepflow.errors import DeepFlowError, InvalidRequest
    from deepflow.local.follow import DeployFailed

    choice = choose_model(
        model,
        name,
        device,
        replicas or 1,
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
        is_here=cluster_manager is None,
        as_json=as_json,
    )
    reporter = deploy_reporter_for(as_json)
    try:
        work = _deploy(choice, replicas is None, wait, data_dir, cluster_manager, reporter)
        asyncio.run(work)
    except KeyboardInterrupt:
        reporter.close()
        fail(f"{choice.name} stays deployed; see 'deepflow models', or 'deepflow undeploy'")
    except (DeployFailed, DeepFlowError) as error:
        reporter.failed(str(error))
        is_wrong = isinstance(error, InvalidRequest)
        words = why(error) if isinstance(error, DeepFlowError) else str(error)
        fail(f"cannot deploy {choice.name}: {words}", EXIT_BAD_OPTION if is_wrong else 1)


async def _deploy(
    choice: "ModelChoice",
    keeps_number: bool,
    wait: bool,
    data_dir: "Path | None",
    address: str | None,
    reporter: "DeployReporter",
) -> None:
    from deepflow.cli.cluster_access import cluster_of
    from deepflow.deployments import describe_deployments, find
    from deepflow.local.follow import deploy_and_follow, latest_view

    async with cluster_of(data_dir, address) as cluster:
        asked = choice.deployment()
        former = find(await latest_view(cluster), choice.name) if keeps_number else None
        if former is not None:  # 'deepflow scale' said how many
            asked.replicas = former.replicas
        if not wait:
            await cluster.deploy(asked)
            reporter.accepted(choice.name)
            return
        view = await deploy_and_follow(cluster, asked, reporter.progress)
        rows = describe_deployments(view)
        reporter.ready(next(row for row in rows if row["name"] == choice.name))
