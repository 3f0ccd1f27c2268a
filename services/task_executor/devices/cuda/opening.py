"""Finds a CUDA build of torch, a card and what Triton needs, or says what is missing."""

import importlib
import os
import shutil

# Below it there is no bf16, and Triton's matrix instructions are others.
CAPABILITY_MIN = (8, 0)
COMPILERS = ("gcc", "clang")  # the ones that Triton looks for


def check_cuda(index: int = 0) -> None:
    """For the card of that index. Raises ValueError, which names what is missing."""
    torch = importlib.import_module("torch")
    if torch.version.cuda is None:
        raise ValueError(
            f"the device cuda needs torch's CUDA build; installed is {torch.__version__}"
        )
    if not torch.cuda.is_available():
        raise ValueError("the device cuda finds no card: see `nvidia-smi` and CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if index >= count:
        raise ValueError(
            f"rank {index} wants a card of its own, but {count} are visible:"
            " see CUDA_VISIBLE_DEVICES"
        )
    capability = torch.cuda.get_device_capability(index)
    if capability < CAPABILITY_MIN:
        raise ValueError(
            "the device cuda needs a card of compute capability"
            f" {_version(CAPABILITY_MIN)} or newer; {torch.cuda.get_device_name(index)} has"
            f" {_version(capability)}"
        )
    _check_triton()


def _check_triton() -> None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        raise ValueError(
            f"the device cuda needs triton, which torch's CUDA build brings on Linux: {error}"
        ) from error
    if "CC" not in os.environ and not any(map(shutil.which, COMPILERS)):
        raise ValueError(
            "the device cuda needs a C compiler for triton: install gcc, or set CC to one"
        )


def _version(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
