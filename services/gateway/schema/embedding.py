"""The fields of /v1/embeddings."""

from typing import Any

import msgspec

from deepflow.v1 import jobs_pb2 as jobs
from services.gateway.schema import fields, shared, values
from services.gateway.schema.completion import INPUT_SHAPE, read_prompts
from services.gateway.schema.fields import Fields, Honoured, Inert
from services.gateway.schema.limits import COUNT_MAX, Limits

ENCODINGS = ("float", "base64")


class EmbeddingRequest(msgspec.Struct, frozen=True):
    model: str
    prompts: list[jobs.Prompt]
    as_base64: bool = False
    dimensions: int = 0  # 0 = all
    user: str = ""


def read_embedding(document: dict[str, Any], limits: Limits) -> EmbeddingRequest:
    read = EMBEDDING.read(document, limits)
    fields.require(
        read,
        "",
        model="the name of a deployment; see /v1/models",
        input="a text, token ids, or an array of either",
    )
    return EmbeddingRequest(
        model=read["model"],
        prompts=read["input"],
        as_base64=read.get("encoding_format") == "base64",
        dimensions=read.get("dimensions", 0),
        user=read.get("user", ""),
    )


def _input(value: Any, param: str, limits: Limits) -> list[jobs.Prompt]:
    return read_prompts(value, param, limits.embedding_inputs)


def _encoding(value: Any, param: str, _limits: Limits) -> str:
    encoding = values.string(value, param)
    if encoding not in ENCODINGS:
        raise values.out_of_range(param, f"one of {', '.join(ENCODINGS)}", repr(encoding))
    return encoding


def _dimensions(value: Any, param: str, _limits: Limits) -> int:
    return values.integer(value, param, 1, COUNT_MAX)


EMBEDDING = Fields(
    honoured=(
        shared.MODEL,
        Honoured("input", _input, INPUT_SHAPE, "Text or token ids, one input or several."),
        Honoured(
            "encoding_format",
            _encoding,
            {"enum": list(ENCODINGS), "default": "float"},
            "Numbers, or the base64 of their little-endian fp32.",
        ),
        Honoured(
            "dimensions",
            _dimensions,
            {"type": "integer", "minimum": 1},
            "Keep the first of each vector's numbers and bring it to length one again.",
        ),
        Honoured(
            "user", fields.text, {"type": "string"}, "Your end user; written to the request log."
        ),
    ),
    inert=(Inert("add_special_tokens", (True,), "The tokenizer adds its own to a text."),),
    refused=("truncate_prompt_tokens",),
    instead={"truncate_prompt_tokens": "shorten the input: nothing is cut in silence"},
)
