"""Finds torch_npu and a card, or says what is missing.

torch_npu changes torch for the whole process and refuses to be loaded beside CUDA, so it is
imported only by a process that was told to use it.
"""

import importlib

WHEEL = "torch_npu 2.13.0"
TORCH = "2.13"


def import_torch_npu(index: int = 0) -> None:
    """For the card of that index. Raises ValueError, which names what is missing."""
    torch = importlib.import_module("torch")
    if not torch.__version__.startswith(f"{TORCH}."):
        raise ValueError(
            f"the device npu needs torch {TORCH} beside {WHEEL}; installed is {torch.__version__}"
        )
    try:
        torch_npu = importlib.import_module("torch_npu")
    except ImportError as error:
        raise ValueError(f"the device npu needs {_missing(error)}") from error
    if not torch_npu.npu.is_available():
        raise ValueError(
            "the device npu finds no card: see `npu-smi info` and ASCEND_RT_VISIBLE_DEVICES"
        )
    count = torch_npu.npu.device_count()
    if index >= count:
        raise ValueError(
            f"rank {index} wants a card of its own, but {count} are visible:"
            " see ASCEND_RT_VISIBLE_DEVICES"
        )


def _missing(error: ImportError) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == "torch_npu":
        return f"{WHEEL}, which is not installed"
    return f"Ascend's CANN libraries (`source .../ascend-toolkit/set_env.sh`): {error}"
