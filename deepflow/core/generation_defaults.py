"""What a model's author wants its tokens drawn with: generation_config.json, read and checked."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepflow.core.model_folder import ModelFolderError, read_json

FILE = "generation_config.json"


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """None where the file says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """Raises ModelFolderError naming file and key; a folder without the file says nothing."""
    if not (folder / FILE).is_file():
        return GenerationDefaults()
    return parse_generation_defaults(read_json(folder, FILE), str(folder / FILE))


def parse_generation_defaults(values: dict[str, Any], origin: str) -> GenerationDefaults:
    """`origin` is what errors call the file."""
    reader = _Reader(values, origin)
    temperature = reader.number("temperature", lambda it: it >= 0, "a number, 0 or more")
    # The author's word on how, not only on what with: greedy, whatever else stands there.
    if reader.flag("do_sample") is False:
        temperature = 0.0
    return GenerationDefaults(
        temperature=temperature,
        top_p=reader.number("top_p", lambda it: 0 < it <= 1, "a number above 0, at most 1"),
        top_k=reader.count("top_k", least=0),
        min_p=reader.number("min_p", lambda it: 0 <= it <= 1, "a number from 0 to 1"),
        repetition_penalty=reader.number(
            "repetition_penalty", lambda it: it > 0, "a number above 0"
        ),
        max_tokens=reader.count("max_new_tokens", least=1),
    )


class _Reader:
    def __init__(self, values: dict[str, Any], origin: str) -> None:
        self._values = values
        self._origin = origin

    def flag(self, key: str) -> bool | None:
        value = self._values.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(key, "true or false")

    def number(self, key: str, is_right: Callable[[float], bool], right: str) -> float | None:
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, right)
        if not (abs(value) <= _LARGEST and math.isfinite(value) and is_right(value)):
            raise self._wrong(key, right)
        return float(value)

    def count(self, key: str, *, least: int) -> int | None:
        value = self._values.get(key)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= _LARGEST:
            raise self._wrong(key, f"a whole number, {least} or more")
        return value

    def _wrong(self, key: str, right: str) -> ModelFolderError:
        return ModelFolderError(
            f"{self._origin}: {key} must be {right}, not {self._values[key]!r:.60}"
        )


# Of a 32-bit count on the wire; no sensible number of any key is near it.
_LARGEST = 2**32 - 1
