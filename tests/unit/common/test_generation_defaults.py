import json
from pathlib import Path
from typing import Any

import pytest

from deepflow.core.generation_defaults import (
    GenerationDefaults,
    parse_generation_defaults,
    read_generation_defaults,
)
from deepflow.core.model_folder import ModelFolderError


def parse(**values: Any) -> GenerationDefaults:
    return parse_generation_defaults(values, "generation_config.json")


def test_a_folder_without_the_file_says_nothing(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path) == GenerationDefaults()


def test_what_the_author_says_is_read(tmp_path: Path) -> None:
    said = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_new_tokens": 2048,
        "eos_token_id": [1, 2],
        "transformers_version": "4.51.0",
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert read_generation_defaults(tmp_path) == GenerationDefaults(0.6, 0.9, 20, 0.05, 1.1, 2048)


def test_greedy_is_said_by_do_sample_alone() -> None:
    assert parse(do_sample=False).temperature == 0.0
    assert parse(do_sample=False, temperature=0.7).temperature == 0.0
    assert parse(do_sample=True).temperature is None
    assert parse(do_sample=None, temperature=None) == GenerationDefaults()


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("temperature", -1, "0 or more"),
        ("temperature", "hot", "a number"),
        ("temperature", True, "a number"),
        ("temperature", float("nan"), "a number"),
        ("temperature", 10**400, "a number"),
        ("top_p", 0, "above 0, at most 1"),
        ("top_p", 1.5, "above 0, at most 1"),
        ("top_k", -1, "a whole number"),
        ("top_k", 2.5, "a whole number"),
        ("top_k", 2**32, "a whole number"),
        ("min_p", 2, "from 0 to 1"),
        ("repetition_penalty", 0, "above 0"),
        ("max_new_tokens", 0, "1 or more"),
        ("do_sample", "no", "true or false"),
    ],
)
def test_a_bad_value_names_file_and_key(key: str, value: Any, right: str) -> None:
    with pytest.raises(ModelFolderError, match=f"generation_config.json: {key} must be .*{right}"):
        parse(**{key: value})
