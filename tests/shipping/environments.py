"""A Python environment for each image: what its extra asks for, and nothing else.

From the packages that are installed here, linked into a fresh environment: quick, and as narrow as
an image. `make test-shipping` hands in environments that pip made from the wheel instead.
"""

import os
import sys
import tomllib
import venv
from collections import defaultdict
from functools import cache
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.shipping.compose_file import ROOT

# A folder with an environment for each extra, made by `make test-shipping`.
FOLDER_VARIABLE = "DEEPFLOW_SHIPPING_ENVIRONMENTS"
_OURS = ("deepflow", "services")


def python_for(extra: str, folder: Path) -> Path:
    """An interpreter that finds what `deepflow[extra]` brings."""
    if made := os.environ.get(FOLDER_VARIABLE):
        return Path(made) / extra / "bin" / "python"
    home = folder / extra
    if not home.exists():
        venv.create(home, with_pip=False, symlinks=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        _fill(home / "lib" / version / "site-packages", closure(extra))
    return home / "bin" / "python"


@cache
def closure(extra: str) -> tuple[str, ...]:
    """The distributions that pip would install for deepflow[extra], by name."""
    found: set[str] = set()
    waiting = [Requirement(f"deepflow[{extra}]")]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        found.add(key[0])
        for line in _requires(key[0]):
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(needed)
    return tuple(sorted(found - {"deepflow"}))


def _requires(name: str) -> list[str]:
    if name == "deepflow":  # an editable install may be older than the file
        return _declared()
    return distribution(name).requires or []


@cache
def _declared() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra, needs in project["optional-dependencies"].items():
        for need in needs:
            requirement, _, marker = need.partition(";")
            condition = f'extra == "{extra}"' + (f" and ({marker.strip()})" if marker else "")
            lines.append(f"{requirement} ; {condition}")
    return lines


def _fill(site: Path, names: tuple[str, ...]) -> None:
    owners: dict[str, list[Distribution]] = defaultdict(list)
    for name in names:
        found = distribution(name)
        for top in {path.parts[0] for path in found.files or []} - {"..", "__pycache__"}:
            owners[top].append(found)
    for top, distributions in owners.items():
        if len(distributions) == 1:
            (site / top).symlink_to(Path(str(distributions[0].locate_file(top))))
        else:  # a namespace that several packages share
            for found in distributions:
                _link_files(site, top, found)
    for package in _OURS:
        (site / package).symlink_to(ROOT / package)


def _link_files(site: Path, top: str, found: Distribution) -> None:
    for path in found.files or []:
        if path.parts[0] == top and "__pycache__" not in path.parts:
            target = site / Path(*path.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(found.locate_file(path))))
