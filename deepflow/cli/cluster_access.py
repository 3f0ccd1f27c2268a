"""How a command finds the cluster: the stack of a data folder, or an address."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepflow.cli.common import EXIT_BAD_OPTION, fail

if TYPE_CHECKING:
    from deepflow.cluster_client import ClusterClient
    from deepflow.errors import DeepFlowError

TOKEN_VARIABLE = "DEEPFLOW_CLUSTER_TOKEN"
# The services' own setting, so that one environment serves both.
ADDRESS_VARIABLE = "DEEPFLOW_CLUSTER_MANAGER_ADDRESS"

ClusterManagerOption = Annotated[
    str | None,
    typer.Option(
        "--cluster-manager",
        envvar=ADDRESS_VARIABLE,
        metavar="HOST:PORT",
        show_default="that of the stack in --data-dir",
        help=f"Address of a cluster manager elsewhere; its token is read from {TOKEN_VARIABLE};"
        " DEEPFLOW_TLS_CA, _TLS_CERTIFICATE and _TLS_KEY name the files of mutual TLS.",
    ),
]


def why(error: "DeepFlowError") -> str:
    """Why a call failed; where nobody answers, what to look at."""
    from deepflow.errors import Unavailable

    if not isinstance(error, Unavailable):
        return error.message
    return (
        f"no cluster manager can do that right now ({error.message}); 'deepflow status' shows what"
        " runs"
    )


@asynccontextmanager
async def cluster_of(data_dir: Path | None, address: str | None) -> AsyncIterator["ClusterClient"]:
    """Ends the command where no stack runs."""
    from deepflow.cluster_client import ClusterClient

    # First: it says whether the connection is to be TLS.
    client = ClusterClient(*(_remote(address) if address else _local(data_dir)))
    try:
        yield client
    finally:
        await client.close()


def _remote(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        fail(f"--cluster-manager {address!r} must be HOST:PORT", EXIT_BAD_OPTION)
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        fail(f"--cluster-manager needs {TOKEN_VARIABLE} to be set", EXIT_BAD_OPTION)
    from deepflow import rpc
    from deepflow.config import ConfigError
    from deepflow.mesh_tls import mesh_tls_of

    try:
        rpc.speak_tls(mesh_tls_of(os.environ))
    except ConfigError as error:
        fail(str(error), EXIT_BAD_OPTION)
    return address, token


def _local(data_dir: Path | None) -> tuple[str, str]:
    from deepflow import rpc
    from deepflow.local.client import SupervisorClient
    from deepflow.local.data_dir import DataDir, default_root
    from deepflow.local.errors import StackError
    from deepflow.local.tls_folder import TlsFolder

    data = DataDir(data_dir or default_root())
    try:
        with SupervisorClient(data) as supervisor:
            described = supervisor.ask("describe")
        tls, address = described.get("tls"), str(described["cluster_manager"])
        rpc.speak_tls(TlsFolder(Path(tls)).mesh() if tls else None)
        return address, data.read_secrets().cluster_token
    except StackError as error:
        fail(str(error))
