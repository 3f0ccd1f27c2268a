"""The tensors of a safetensors folder, by name. No other format is read: pickles run code."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from deepflow.core.model_folder import ModelFolderError, TensorHeader, read_tensor_headers

_REFUSED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")


class SafetensorsFolder:
    """Tensors are taken one by one; `check_all_taken` says when the model has no place for some."""

    def __init__(self, path: str | Path, device: torch.device, dtype: torch.dtype) -> None:
        self._folder = Path(path)
        self._device = device
        self._dtype = dtype
        self._headers = {header.name: header for header in read_tensor_headers(self._folder)}
        self._taken: set[str] = set()
        self._files: dict[Path, Any] = {}  # kept open: each opening parses the header again
        if not self._headers:
            raise ModelFolderError(f"{self._folder}: {_why_empty(self._folder)}")

    def __contains__(self, name: str) -> bool:
        return name in self._headers

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor on the device, in the dtype asked for; its shape must be the model's."""
        header = self._header(name)
        if header.shape != shape:
            raise ModelFolderError(
                f"{header.file}: tensor {name} has shape {header.shape}, not {shape}"
            )
        self._taken.add(name)
        tensor: torch.Tensor = self._open(header.file).get_tensor(name)
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise ModelFolderError(f"{header.file}: tensor {name} is {header.dtype}: quantized?")
        # A copy, always: a tensor that maps the file would change or die with it.
        return tensor.to(self._dtype, copy=True)

    def check_all_taken(self, ignored: Iterable[str] = ()) -> None:
        """A tensor left over means that the model would not be the one that was saved."""
        endings = tuple(ignored)
        left = [name for name in self._headers if name not in self._taken]
        left = sorted(name for name in left if not name.endswith(endings))
        if left:
            raise ModelFolderError(
                f"{self._folder}: {len(left)} tensors have no place in the model: "
                f"{', '.join(left[:5])}"
            )

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = safe_open(path, framework="pt", device=str(self._device))
        return self._files[path]

    def _header(self, name: str) -> TensorHeader:
        header = self._headers.get(name)
        if header is None:
            raise ModelFolderError(f"{self._folder}: tensor {name} is missing")
        return header


def _why_empty(folder: Path) -> str:
    refused = sorted(path.name for pattern in _REFUSED for path in folder.glob(pattern))
    if refused:
        return f"only safetensors are loaded, and it holds {', '.join(refused)}"
    return "no safetensors file"
