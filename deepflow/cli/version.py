"""`deepflow version`."""

import json
from typing import Annotated

import typer

_PACKAGES = ("torch", "grpcio", "nats-py", "redis", "tokenizers", "safetensors", "starlette")


def version(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Versions of DeepFlow and of what it stands on: put them in a bug report."""
    versions = _versions()
    if as_json:
        print(json.dumps(versions))
        return
    for name, value in versions.items():
        print(f"{name:<14} {value}")


def _versions() -> dict[str, str]:
    import platform

    from deepflow import __version__
    from deepflow.local import binaries

    found = {"deepflow": __version__, "python": platform.python_version()}
    found["platform"] = f"{platform.system()} {platform.machine()}"
    found |= {name: _package(name) for name in _PACKAGES}
    for name, find in (
        ("nats-server", binaries.nats_server),
        ("redis-server", binaries.redis_server),
    ):
        try:
            found[name] = _program(str(find()))
        except binaries.MissingBinary as error:
            found[name] = str(error)
    return found


def _package(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _program(path: str) -> str:
    import subprocess

    answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    return f"{answer.stdout.strip().splitlines()[0]} ({path})"
