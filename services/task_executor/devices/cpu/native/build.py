"""Compiles a C file for this very CPU, once: what was built is kept, and found again.

Needs a C compiler; where there is none, or anything else is missing, there is no library and
whoever wanted it goes on without.
"""

import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from deepflow.core.bound import bound_to_parent

COMPILERS = ("cc", "gcc", "clang")
# Sums may be reordered, or nothing could be vectorised; but a NaN must stay one.
FLAGS = (
    "-O3", "-march=native", "-std=c11", "-fPIC", "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math",
    "-ffp-contract=fast",  # products and sums in one instruction, which C11 alone does not allow
)  # fmt: skip
COMPILE_SECONDS_MAX = 60.0


class NoLibrary(Exception):
    """Says what is missing."""


def build(source: Path, folder: Path | None = None) -> Path:
    """The shared library of a C file; raises NoLibrary.

    It is linked to the OpenMP that torch has loaded: a second one would bring threads of its own,
    and both would wait spinning.
    """
    openmp = _loaded_openmp()
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise NoLibrary("there is no C compiler")
    folder = folder or cache_folder()
    _make_private(folder)
    library = folder / f"{source.stem}-{_key(source, compiler, openmp)}.so"
    if not library.exists():
        _compile(compiler, source, openmp, library)
    return library


def cache_folder() -> Path:
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise NoLibrary("there is no home folder to keep a library in") from error
    return Path(base) / "deepflow" / "native"


def _make_private(folder: Path) -> None:
    """What lies there is loaded into this process: nobody else may put anything there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise NoLibrary(f"{folder} cannot be used: {error.strerror}") from error
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NoLibrary(f"{folder} can be written by others")


def _key(source: Path, compiler: str, openmp: Path) -> str:
    """Of all that the library depends on; a home folder may be shared by unlike machines."""
    headers = [header.read_text() for header in sorted(source.parent.glob("*.h"))]
    code = (source.read_text(), *headers)
    parts = (*code, compiler, str(openmp), *FLAGS, platform.machine(), _cpu())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = ("flags", "Features", "model", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in names}))


def _loaded_openmp() -> Path:
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError as error:
        raise NoLibrary("this system does not tell what is loaded") from error
    loaded = {Path(line.split(maxsplit=5)[5]) for line in lines if "libgomp" in line}
    # Other packages bring theirs; torch's own wheel keeps its beside it.
    paths = {path for path in loaded if "torch" in path.parts} or loaded
    if len(paths) != 1:
        raise NoLibrary(f"torch must have loaded one libgomp, not {len(paths)}")
    return paths.pop()


def _compile(compiler: str, source: Path, openmp: Path, library: Path) -> None:
    """Under another name first: a library is complete or absent."""
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        unit, made = Path(scratch) / "unit.o", Path(scratch) / "unit.so"
        _run([compiler, *FLAGS, "-c", str(source), "-o", str(unit)])
        _run([compiler, "-shared", str(unit), str(openmp), "-lm", "-o", str(made)])
        made.replace(library)


def _run(command: list[str]) -> None:
    try:
        subprocess.run(
            bound_to_parent(command),
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMPILE_SECONDS_MAX,
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise NoLibrary(f"it does not compile: {said[0] if said else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoLibrary(f"the compiler did not finish: {error}") from error
