import ctypes
from pathlib import Path

import pytest
import torch  # noqa: F401  what is built is linked to its OpenMP

from services.task_executor.devices.cpu.native.background import BackgroundBuild
from services.task_executor.devices.cpu.native.build import NoLibrary, build

REFUSED = '#error "not for this CPU"\n'


def _answer(library: Path) -> int:
    """Raises OSError where the library will not be used."""
    answer = int(ctypes.CDLL(str(library)).answer())
    if answer == 0:
        raise OSError("the system does not let it")
    return answer


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    codes = {
        "refused": REFUSED,
        "barred": "int answer(void) { return 0; }\n",
        "first": "int answer(void) { return 1; }\n",
        "second": "int answer(void) { return 2; }\n",
    }
    paths = {name: tmp_path / f"{name}.c" for name in codes}
    for name, path in paths.items():
        path.write_text(codes[name])
    try:
        build(paths["first"])
    except NoLibrary as error:
        pytest.skip(f"nothing can be built here: {error}")
    return paths


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (["first", "second"], 1),
        (["refused", "second"], 2),
        (["barred", "refused", "second"], 2),
        (["refused", "barred"], None),
    ],
)
def test_the_first_that_can_be_had_is_taken(
    sources: dict[str, Path], names: list[str], answer: int | None
) -> None:
    built = BackgroundBuild(_answer, *(sources[name] for name in names))
    assert built.wait() == built.get() == answer
