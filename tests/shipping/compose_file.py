"""Reads compose/docker-compose.yaml as docker compose would, and says what each container is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose"
FILE = COMPOSE / "docker-compose.yaml"
DOCKERFILE = COMPOSE / "Dockerfile"

_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<rest>[^}]*))?\})")


class MissingVariable(Exception):
    """A variable that the file insists on is not set."""


@dataclass(frozen=True)
class Container:
    """One service of the file, its variables filled in."""

    name: str
    definition: dict[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        return {key: str(value) for key, value in self.definition.get("environment", {}).items()}

    @property
    def target(self) -> str:
        """The stage of the Dockerfile it is built from; empty where its image is another's."""
        return str(self.definition.get("build", {}).get("target", ""))

    @property
    def is_ours(self) -> bool:
        return bool(self.target)

    @property
    def profiles(self) -> list[str]:
        return list(self.definition.get("profiles", []))

    def source_of(self, mounted: str) -> str:
        """The file beside the compose file that is seen in the container as `mounted`."""
        pairs = (str(volume).split(":")[:2] for volume in self.definition["volumes"])
        return next(source for source, target in pairs if target == mounted)

    @property
    def health_command(self) -> list[str]:
        return [str(word) for word in self.definition["healthcheck"]["test"]]


def read_containers(variables: Mapping[str, str]) -> dict[str, Container]:
    document = yaml.safe_load(FILE.read_text())
    return {
        name: Container(name, fill_in(definition, variables))
        for name, definition in document["services"].items()
    }


def fill_in(value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with every ${NAME}, ${NAME:-default} and ${NAME:?why} replaced, at any depth."""
    if isinstance(value, dict):
        return {key: fill_in(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_in(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return "$"
        found = variables.get(name, "")
        if found or not match["how"]:
            return found
        if match["how"] == ":?":
            raise MissingVariable(f"{name}: {match['rest']}")
        return match["rest"]

    return _VARIABLE.sub(replace, value)


def read_env(path: Path) -> dict[str, str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}
