"""What a machine without a card, a CUDA build or triton is told."""

import sys
from collections.abc import Callable

import pytest
import torch

from deepflow.core.devices import DEVICE_DTYPES
from services.task_executor.devices.cuda import opening
from services.task_executor.devices.cuda.opening import check_cuda
from services.task_executor.devices.registry import DEVICES, TorchDevice


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has all it needs."""

    def says(value: object) -> Callable[..., object]:
        return lambda *args: value

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", says(True))
    monkeypatch.setattr(torch.cuda, "device_count", says(2))
    monkeypatch.setattr(torch.cuda, "get_device_capability", says((9, 0)))
    monkeypatch.setattr(torch.cuda, "get_device_name", says("A card"))
    monkeypatch.setitem(sys.modules, "triton", opening)  # any module
    monkeypatch.setenv("CC", "cc")


@pytest.mark.usefixtures("two_cards")
def test_nothing_is_missing() -> None:
    check_cuda(1)


def test_a_build_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=rf"CUDA build; installed is {torch.__version__[:4]}"):
        check_cuda()


@pytest.mark.usefixtures("two_cards")
def test_without_a_card_it_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"no card: see `nvidia-smi` and CUDA_VISIBLE_DEVICES"):
        check_cuda()


@pytest.mark.usefixtures("two_cards")
def test_a_rank_without_a_card_of_its_own_is_named() -> None:
    with pytest.raises(ValueError, match="rank 2 wants a card of its own, but 2 are visible"):
        check_cuda(2)


@pytest.mark.usefixtures("two_cards")
def test_an_old_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    with pytest.raises(ValueError, match=r"capability 8\.0 or newer; A card has 7\.5"):
        check_cuda()


@pytest.mark.usefixtures("two_cards")
def test_without_triton_it_says_who_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match="needs triton, which torch's CUDA build brings"):
        check_cuda()


@pytest.mark.usefixtures("two_cards")
def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="needs a C compiler for triton: install gcc"):
        check_cuda()


def test_a_dtype_is_refused_before_anything_is_imported() -> None:
    entry = DEVICES.get("cuda")
    assert isinstance(entry, TorchDevice) and entry.dtypes == DEVICE_DTYPES["cuda"]
    with pytest.raises(ValueError, match="computes in bfloat16, float32, int8, not in float16"):
        entry.open(None, "float16")
