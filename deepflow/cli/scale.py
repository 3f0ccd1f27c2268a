"""`deepflow scale`: more or fewer replicas of a model, or job executors."""

from typing import TYPE_CHECKING, Annotated

import typer

from deepflow.cli.cluster_access import ClusterManagerOption, cluster_of
from deepflow.cli.common import EXIT_BAD_OPTION, DataDirOption, fail

if TYPE_CHECKING:
    from pathlib import Path

    from deepflow.cli.deploy_reporter import DeployReporter

JOB_EXECUTORS = "job-executors"


def scale(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help=f"As 'deepflow models' shows it; or '{JOB_EXECUTORS}'."
        ),
    ],
    count: Annotated[int, typer.Argument(min=1, max=64, metavar="N", help="How many there be.")],
    wait: Annotated[bool, typer.Option(help="Stay until there are as many.")] = True,
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help='One JSON object a line; the last is "ready" or "failed".'),
    ] = False,
) -> None:
    """Change the number of replicas of a model, or of job executors.

    Those that go get no new work, end what runs on them and then stop: no
    request fails.

    \b
      deepflow scale llama 3
      deepflow scale job-executors 2
    """
    import asyncio

    from deepflow.cli.deploy_reporter import deploy_reporter_for
    from deepflow.errors import DeepFlowError, InvalidRequest, NotFound
    from deepflow.local.follow import DeployFailed

    reporter = deploy_reporter_for(as_json)
    try:
        asyncio.run(_scale(name, count, wait, data_dir, cluster_manager, reporter))
    except KeyboardInterrupt:
        reporter.close()
        fail(f"{name} is going to have {count} all the same; see 'deepflow status'")
    except (DeployFailed, DeepFlowError) as error:
        reporter.failed(str(error))
        is_wrong = isinstance(error, InvalidRequest | NotFound)
        fail(f"cannot scale {name}: {error}", EXIT_BAD_OPTION if is_wrong else 1)


async def _scale(
    name: str,
    count: int,
    wait: bool,
    data_dir: "Path | None",
    address: str | None,
    reporter: "DeployReporter",
) -> None:
    from deepflow.local.deployments import describe_deployments
    from deepflow.local.scaling import follow_job_executors, follow_replicas

    async with cluster_of(data_dir, address) as cluster:
        if name == JOB_EXECUTORS:
            await cluster.scale_job_executors(count)
            if wait:
                await follow_job_executors(cluster, count, reporter.progress)
            reporter.scaled(name, count)
            return
        deployment = await cluster.scale(name, count)
        if not wait:
            reporter.scaled(name, count)
            return
        view = await follow_replicas(cluster, deployment, reporter.progress)
        reporter.ready(next(row for row in describe_deployments(view) if row["name"] == name))
