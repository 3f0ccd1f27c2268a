"""Typed reads of one JSON file of a model folder; every error names the file and the key."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepflow.core.model_folder import ModelFolderError

SIZE_MAX = 2**31 - 1  # of anything that is counted; beyond lies damage, not a model
NUMBER_MAX = 1e18
_REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class ConfigValues:
    """A null counts as missing, except to `get` and `in`, which see what was written."""

    path: Path
    values: dict[str, Any]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def size(self, key: str, default: int = _REQUIRED, most: int = SIZE_MAX) -> int:
        value = self._value(key, default)
        if type(value) is not int or value < 1:
            raise self.error(f"{key} must be a positive integer, not {value!r}")
        if value > most:
            raise self.error(f"{key} must be at most {most}, not {value}")
        return value

    def number(self, key: str, default: float = _REQUIRED) -> float:
        value = self._value(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= NUMBER_MAX:
            raise self.error(f"{key} must be a positive number, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, not {value!r}")
        return value

    def choice(self, key: str, supported: tuple[str, ...], default: str, name: str = "") -> str:
        """`name` is what errors call the key, where its own name says too little."""
        value = self._value(key, default)
        if value not in supported:
            raise self.error(
                f"{name or key} {value!r} is not supported; supported: {', '.join(supported)}"
            )
        return str(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id, several or none; each once."""
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise self.error(f"{key} must hold token ids, not {value!r}")
        return tuple(dict.fromkeys(ids))

    def object(self, key: str) -> "ConfigValues":
        """Empty where it is missing."""
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise self.error(f"{key} must be an object, not {value!r}")
        return ConfigValues(self.path, value)

    def error(self, message: str) -> ModelFolderError:
        return ModelFolderError(f"{self.path}: {message}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is _REQUIRED:
            raise self.error(f"{key} is missing")
        return value
