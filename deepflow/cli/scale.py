"""`deepflow scale`: more or fewer replicas of a model, job executors or gateways."""

from typing import TYPE_CHECKING, Annotated

import typer

from deepflow.cli.cluster_access import ClusterManagerOption, cluster_of, why
from deepflow.cli.common import EXIT_BAD_OPTION, DataDirOption, fail
from deepflow.cli.scale_hints import COUNT_MAX, hint_for, wrong_count

if TYPE_CHECKING:
    from pathlib import Path

    from deepflow.cli.deploy_reporter import DeployReporter


def scale(
    name: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="A model as 'deepflow models' shows it; or job-executors; or gateways.",
        ),
    ],
    count: Annotated[
        int, typer.Argument(metavar="N", help=f"How many there be, from 1 to {COUNT_MAX}.")
    ],
    wait: Annotated[bool, typer.Option(help="Stay until there are as many.")] = True,
    data_dir: DataDirOption = None,
    cluster_manager: ClusterManagerOption = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help='One JSON object a line; the last is "ready" or "failed".'),
    ] = False,
) -> None:
    """Change how many replicas of a model there are, or job executors, or gateways.

    Those that go get no new work, end what runs on them and then stop: no
    request fails. A gateway that goes refuses connections meanwhile, so
    clients and load balancers go to another one. The first gateway keeps the
    port of 'deepflow up'; each further one takes the next port, or a free
    one: 'deepflow status' shows all URLs.

    The number stays over restarts of processes; 'deepflow up' begins with its
    own. Where somebody else starts the processes, as in the compose stack,
    only models are scaled here.

    \b
      deepflow scale llama 3
      deepflow scale job-executors 2
      deepflow scale gateways 2

    [bold]Exit codes[/bold]

    \b
      0    there are as many (with --no-wait: it was asked for)
      1    there are not, or nobody could be asked
      2    there is no such thing, or not so many of it
    """
    if wrong := wrong_count(name, count):
        fail(wrong, EXIT_BAD_OPTION)
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
    except DeployFailed as error:
        reporter.failed(str(error))
        fail(f"cannot scale {name}: {error}")
    except DeepFlowError as error:
        message = hint_for(name) if isinstance(error, NotFound) else ""
        message = message or why(error)
        reporter.failed(message)
        is_wrong = isinstance(error, InvalidRequest | NotFound)
        fail(f"cannot scale {name}: {message}", EXIT_BAD_OPTION if is_wrong else 1)


async def _scale(
    name: str,
    count: int,
    wait: bool,
    data_dir: "Path | None",
    address: str | None,
    reporter: "DeployReporter",
) -> None:
    from deepflow.deployments import describe_deployments
    from deepflow.local.scaling import follow_kind, follow_replicas
    from deepflow.members import SCALED_KINDS, members_of

    async with cluster_of(data_dir, address) as cluster:
        if kind := SCALED_KINDS.get(name):
            await cluster.scale_kind(kind, count)
            where: list[str] = []
            if wait:
                view = await follow_kind(cluster, kind, count, reporter.progress)
                where = sorted(member.address for member in members_of(view, kind))
            reporter.scaled(name, count, where if name == "gateways" else [])
            return
        deployment = await cluster.scale(name, count)
        if not wait:
            reporter.scaled(name, count, [])
            return
        view = await follow_replicas(cluster, deployment, reporter.progress)
        reporter.ready(next(row for row in describe_deployments(view) if row["name"] == name))
