"""Builds libraries that satisfy the loader: the real torch_npu can be imported without CANN.

torch_npu is linked against CANN, and looks up further functions by name. Each of them becomes a
function that returns 0; those whose answer matters are written out in acl.c.
"""

import hashlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("acl.c")
RUNTIME = "libascendcl.so"
# Opened by name at run time, so that no header mentions it.
OPENED = "libopapi.so"
SYSTEM = tuple(
    Path(place)
    for place in (
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/lib64",
        "/usr/lib64",
    )
)
# Functions that torch_npu looks up by name. Of acl's, operators and profiling have own libraries.
LOOKED_UP = re.compile(r"(acl(?!nn|op|prof)|Hccl|Msprof|mstx)[A-Za-z0-9]+")
DEFINED = re.compile(r"\b(acl\w+)\(")
TOOLS = ("gcc", "readelf", "strings")
COMPILE = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-fno-builtin"]


class ToolsMissing(RuntimeError):
    """The message names them."""


def built_libraries(wheel: Path, cache: Path) -> Path:
    """The folder for LD_LIBRARY_PATH; builds where sources or wheel changed."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise ToolsMissing(f"building the fake CANN libraries needs {', '.join(missing)} on PATH")
    sources = SOURCE.read_bytes() + Path(__file__).read_bytes() + str(wheel).encode()
    target = cache / f"cann-{hashlib.sha256(sources).hexdigest()[:12]}"
    if not target.is_dir():
        fresh = cache / "cann.part"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        _build(wheel, fresh)
        fresh.rename(target)
    return target


def _build(wheel: Path, folder: Path) -> None:
    modules = [*wheel.glob("torch_npu/_C*.so"), *wheel.glob("torch_npu/lib/*.so")]
    places = [_torch_libraries(), *SYSTEM]
    needed = {name for module in modules for name in _needed(module)}
    names = sorted(_missing_symbols(modules, needed, places))
    stubs = folder / "stubs.c"
    stubs.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in names))
    _compile(folder / RUNTIME, [str(SOURCE), str(stubs)])
    shipped = {module.name for module in modules}
    absent = {it for it in needed - shipped if not any((at / it).exists() for at in places)}
    empty = folder / "empty.c"
    empty.write_text("")
    for name in sorted((absent | {OPENED}) - {RUNTIME}):
        _compile(folder / name, [str(empty), f"-L{folder}", "-Wl,--no-as-needed", "-lascendcl"])


def _compile(library: Path, arguments: list[str]) -> None:
    command = [*COMPILE, f"-Wl,-soname,{library.name}", "-o", str(library), *arguments]
    subprocess.run(command, check=True, timeout=120)


def _missing_symbols(modules: list[Path], needed: set[str], places: list[Path]) -> set[str]:
    wanted: set[str] = set()
    known = set(DEFINED.findall(SOURCE.read_text()))
    for module in modules:
        undefined, defined = _symbols(module)
        wanted |= undefined
        known |= defined
        wanted |= {word for word in _strings(module) if LOOKED_UP.fullmatch(word)}
    torch_libraries = {path.name for path in places[0].glob("*.so*")}
    for name in torch_libraries | {it for it in needed if ".so." in it}:
        found = next((at / name for at in places if (at / name).exists()), None)
        if found is not None:
            known |= _symbols(found)[1]
    return {it for it in wanted - known if not it.startswith(("Py", "_Py"))}


def _symbols(library: Path) -> tuple[set[str], set[str]]:
    """Undefined ones, without those that may stay so, and defined ones."""
    undefined, defined = set(), set()
    for line in _output("readelf", "-W", "--dyn-syms", str(library)).splitlines():
        columns = line.split()
        if len(columns) < 8 or not columns[0].endswith(":"):
            continue
        binding, section, name = columns[4], columns[6], columns[7].partition("@")[0]
        if section != "UND":
            defined.add(name)
        elif binding != "WEAK":
            undefined.add(name)
    return undefined, defined


def _needed(library: Path) -> list[str]:
    return re.findall(r"NEEDED.*\[(.*)\]", _output("readelf", "-d", str(library)))


def _strings(library: Path) -> list[str]:
    return _output("strings", "-n", "5", str(library)).split()


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def _torch_libraries() -> Path:
    found = importlib.util.find_spec("torch")  # found, not imported
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "lib"
