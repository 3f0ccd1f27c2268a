"""What a machine without cards, CANN or torch_npu is told. No part of torch_npu is needed here."""

import subprocess
import sys
from pathlib import Path

import pytest

from deepflow.core.devices import DEVICE_DTYPES
from services.task_executor.devices.npu.opening import import_torch_npu
from services.task_executor.devices.registry import DEVICES, TorchDevice

CANN_IS_MISSING = "raise ImportError('libhccl.so: cannot open shared object file')"
NO_CARD = "class npu:\n    is_available = staticmethod(lambda: False)"
TWO_CARDS = (
    "class npu:\n"
    "    is_available = staticmethod(lambda: True)\n"
    "    device_count = staticmethod(lambda: 2)\n"
)


def opened_beside(folder: Path, module: str, index: int = 0) -> str:
    """What opening the device says in a process that finds such a torch_npu."""
    (folder / "torch_npu.py").write_text(module)
    program = (
        "from services.task_executor.devices.registry import DEVICES\n"
        "try:\n"
        f"    DEVICES.get('npu').open(None, '', index={index})\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_without_torch_npu_it_names_the_wheel() -> None:
    with pytest.raises(ValueError, match=r"needs torch_npu 2\.13\.0, which is not installed"):
        import_torch_npu()


def test_without_cann_it_names_the_library_and_the_script(tmp_path: Path) -> None:
    said = opened_beside(tmp_path, CANN_IS_MISSING)
    assert "CANN" in said and "set_env.sh" in said and "libhccl.so" in said


def test_without_a_card_it_says_where_to_look(tmp_path: Path) -> None:
    said = opened_beside(tmp_path, NO_CARD)
    assert "no card" in said and "ASCEND_RT_VISIBLE_DEVICES" in said


def test_a_rank_without_a_card_of_its_own_is_named(tmp_path: Path) -> None:
    said = opened_beside(tmp_path, TWO_CARDS, index=2)
    assert said.startswith("rank 2 wants a card of its own, but 2 are visible")


def test_another_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "__version__", "2.11.0")
    with pytest.raises(ValueError, match=r"needs torch 2\.13 .* installed is 2\.11\.0"):
        import_torch_npu()


def test_a_dtype_is_refused_before_anything_is_imported() -> None:
    entry = DEVICES.get("npu")
    assert isinstance(entry, TorchDevice) and entry.dtypes == DEVICE_DTYPES["npu"]
    with pytest.raises(ValueError, match="computes in bfloat16, int8, not in float32"):
        entry.open(None, "float32")
