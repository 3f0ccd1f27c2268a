"""The tensors of a safetensors folder, by name. No other format is read: pickles run code."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from deepflow.core.model_folder import ModelFolderError, TensorHeader, read_tensor_headers
from services.task_executor.weights.cut import Cut

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
        cut = self._cut(name)
        stored = shape if cut is None else cut.whole_shape(shape)
        if header.shape != stored:
            raise ModelFolderError(
                f"{header.file}: tensor {name} has shape {header.shape}, not {stored}"
            )
        self._taken.add(name)
        tensor = self._read(header, cut)
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise ModelFolderError(f"{header.file}: tensor {name} is {header.dtype}: quantized?")
        # A copy, always: a tensor that maps the file would change or die with it.
        return tensor.to(self._dtype, copy=True, memory_format=torch.contiguous_format)

    def check_all_taken(self, ignored: Iterable[str] = ()) -> None:
        """A tensor left over means that the model would not be the one that was saved."""
        endings = tuple(ignored)
        known = (name for name in self._headers if not self._is_elsewhere(name))
        left = [name for name in known if name not in self._taken]
        left = sorted(name for name in left if not name.endswith(endings))
        if left:
            raise ModelFolderError(
                f"{self._folder}: {len(left)} tensors have no place in the model: "
                f"{', '.join(left[:5])}"
            )

    def _cut(self, name: str) -> Cut | None:
        """Which part of a tensor is wanted; None = all of it."""
        return None

    def _is_elsewhere(self, name: str) -> bool:
        """Whether another rank holds that tensor, and this one nothing of it."""
        return False

    def _read(self, header: TensorHeader, cut: Cut | None) -> torch.Tensor:
        file = self._open(header.file)
        if cut is None:
            tensor: torch.Tensor = file.get_tensor(header.name)
            return tensor
        stored, part = file.get_slice(header.name), slice(cut.part.start, cut.part.stop)
        own: torch.Tensor = stored[part] if cut.axis == 0 else stored[:, part]
        return own

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
