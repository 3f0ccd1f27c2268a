"""The pack of bad requests: what is sent, and the field that the refusal must name. Data only.

A new field of the API gets its rows here; `bombs.py` beside it holds what is too expensive.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
STREAMING = (CHAT, COMPLETIONS)

# Numbers that Python's writer of JSON has no value for.
NUMBER_1E400, NUMBER_MINUS_1E400 = "<number 1e400>", "<number -1e400>"
INFINITY, NAN = float("inf"), float("nan")

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
PROMPT: dict[str, Any] = {"prompt": "hi"}
# What a good request to the route holds beside its model.
BASES = {
    CHAT: HI,
    COMPLETIONS: PROMPT,
    EMBEDDINGS: {"input": "hi"},
    TOKENIZE: PROMPT,
    DETOKENIZE: {"tokens": [1]},
}
FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "f"}}


class Bad(NamedTuple):
    path: str
    change: dict[str, Any]  # of a good request
    param: str | None  # the field that the error names

    def body(self, model: str, *, stream: bool | None = None) -> bytes:
        """`stream` only where the case says nothing about it."""
        document: dict[str, Any] = {"model": model, **BASES[self.path]}
        if stream is not None and self.path in STREAMING:
            document["stream"] = stream
        text = json.dumps({**document, **self.change})
        for number in (NUMBER_1E400, NUMBER_MINUS_1E400):
            text = text.replace(f'"{number}"', number[len("<number ") : -1])
        return text.encode()


def _each(path: str, name: str, *values: Any) -> list[Bad]:
    """One field with one bad value after another."""
    return [Bad(path, {name: value}, name) for value in values]


def _message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi", **fields}]}


def _said(**fields: Any) -> dict[str, Any]:
    return _message(role="assistant", content=None, **fields)


def _call(**fields: Any) -> dict[str, Any]:
    made = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return _said(tool_calls=[{**made, **fields}])


def _tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **fields}}]}


def _named_schema(**fields: Any) -> dict[str, Any]:
    schema = {"name": "answer", "schema": {"type": "object"}, **fields}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


NOT_NUMBERS: tuple[Any, ...] = ("1", True, [], {}, NAN, INFINITY, -INFINITY)
TOO_LARGE: tuple[Any, ...] = (NUMBER_1E400, NUMBER_MINUS_1E400, 10**400, 10**30)
NOT_COUNTS: tuple[Any, ...] = (*NOT_NUMBERS, *TOO_LARGE, -5, 1.5, 2**31)
NOT_FLAGS: tuple[Any, ...] = ("true", 1, 0, [], {})
NOT_TEXTS: tuple[Any, ...] = (5, True, ["a"], {})
NOT_OBJECTS: tuple[Any, ...] = (5, "x", [], None)
NOT_CONTENT: tuple[Any, ...] = (None, 5, True, {}, [])

_NUMBERS: dict[str, tuple[float, ...]] = {
    "temperature": (-0.1, 2.1),
    "top_p": (-0.1, 0, 1.1),
    "min_p": (-0.1, 1.1),
    "repetition_penalty": (-1, 0, 2.1),
    "presence_penalty": (-2.1, 2.1),
    "frequency_penalty": (-2.1, 2.1),
}
_COUNTS = ("max_tokens", "min_tokens", "top_k", "n", "prompt_logprobs")
_FLAGS = ("ignore_eos", "skip_special_tokens", "stream", "return_token_ids")
_REFUSED = ("allowed_token_ids", "bad_words", "guided_grammar", "logits_processors")


def _drawing(path: str) -> list[Bad]:
    """The fields that both generating routes have."""
    cases = [
        bad
        for name, values in _NUMBERS.items()
        for bad in _each(path, name, *values, *NOT_NUMBERS, *TOO_LARGE)
    ]
    for name in _COUNTS:
        cases += _each(path, name, *NOT_COUNTS)
    for name in _FLAGS:
        cases += _each(path, name, *NOT_FLAGS)
    for name in _REFUSED:
        cases += _each(path, name, 5)
    return [
        *cases,
        *_each(path, "seed", 1.5, "1", True, 2**63, -(2**63) - 1, *TOO_LARGE, NAN),
        *_each(path, "model", 5, "", [], "x" * 300),
        *_each(path, "user", *NOT_TEXTS),
        Bad(path, {"user": "half of a character: \ud800"}, None),
        *_each(path, "n", 0, 17, 10**9),
        Bad(path, {"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        Bad(path, {"min_tokens": 1025}, "min_tokens"),
        Bad(path, {"min_tokens": 2**31 - 1}, "min_tokens"),
        *_each(path, "max_tokens", 0),
        *_each(path, "stop", 5, "", {}, ["a"] * 5, "x" * 257),
        Bad(path, {"stop": ["a", 5]}, "stop[1]"),
        Bad(path, {"stop": ["a", ""]}, "stop[1]"),
        *_each(path, "stop_token_ids", 5, "a", {}, [1] * 129),
        *(
            Bad(path, {"stop_token_ids": [1, bad]}, "stop_token_ids[1]")
            for bad in (-1, "a", True, 1.0, NAN, 10**6, 2**32, 10**30, NUMBER_1E400)
        ),
        *_each(path, "logit_bias", [], "x", 5, {str(i): 1 for i in range(301)}),
        *(
            Bad(path, {"logit_bias": {key: 1}}, f"logit_bias.{key}")
            for key in ("a", "", "-1", "05", "1.0", " 5", "٥", "1000000", "4294967296", "9" * 30)
        ),
        *(
            Bad(path, {"logit_bias": {"5": value}}, "logit_bias.5")
            for value in (101, -101, None, *NOT_NUMBERS, *TOO_LARGE)
        ),
        *_each(path, "stream_options", [], "x"),
        Bad(path, {"stream": False, "stream_options": {"include_usage": True}}, "stream_options"),
        Bad(path, {"stream": True, "stream_options": {"include_usage": 1}}, _USAGE),
        Bad(path, {"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        Bad(path, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        *_each(path, "prompt_logprobs", 21),
        Bad(path, {"max_token": 5}, "max_token"),
        Bad(path, {"": 5}, None),
        Bad(path, {"x" * 5000: 5}, "x" * 61 + "..."),
        Bad(path, {f"field_{i}": 5 for i in range(5000)}, "field_0"),
    ]


_USAGE = "stream_options.include_usage"


def _languages(path: str) -> list[Bad]:
    """What binds the answer, wrong in form; nothing of it is compiled."""
    return [
        *_each(path, "response_format", "json", [], 5),
        *(
            Bad(path, {"response_format": {"type": kind}}, "response_format.type")
            for kind in (None, "xml", *NOT_TEXTS)
        ),
        Bad(path, {"response_format": {"type": "json_object", "x": 1}}, "response_format.x"),
        Bad(path, {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        *(
            Bad(path, _named_schema(**{name: value}), f"response_format.json_schema.{name}")
            for name, value in (
                ("name", None),
                ("name", "a b"),
                ("schema", None),
                ("schema", "{}"),
                ("schema", []),
                ("schema", {"description": "x" * 2**17}),
                ("strict", 1),
                ("description", 5),
                ("more", 1),
            )
        ),
        *_each(path, "guided_json", 5, "{", "[]", "null", json.dumps(nested(100))),
        *_each(path, "guided_regex", "", {}, 5, "a" * (2**17 + 1)),
        *_each(path, "guided_choice", [], "a", {}, ["a"] * 1025, ["a" * 1024] * 129),
        *_each(path, "guided_choice", [f"word {i}" for i in range(100_000)]),
        Bad(path, {"guided_choice": ["a", 5]}, "guided_choice[1]"),
        Bad(path, {"guided_choice": ["a", ""]}, "guided_choice[1]"),
        *_each(path, "structured_outputs", [], {}, {"json": {}, "regex": "a"}),
        Bad(path, {"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        Bad(path, {"structured_outputs": {"grammar": "x"}}, "structured_outputs.grammar"),
        Bad(path, {"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        Bad(path, {"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
        Bad(path, {"response_format": {"type": "json_object"}, "guided_json": {}}, "guided_json"),
        Bad(path, {"guided_json": {"minimum": NUMBER_1E400}}, "guided_json.minimum"),
        Bad(path, {"guided_json": {"minimum": NAN}}, "guided_json.minimum"),
        Bad(path, {"guided_json": nested(100)}, None),
    ]


def _chat() -> list[Bad]:
    at = "messages[0]"
    return [
        *_each(CHAT, "messages", None, [], "hi", {}, 5),
        Bad(CHAT, {"messages": ["hi"]}, at),
        Bad(CHAT, {"messages": [None]}, at),
        Bad(CHAT, {"messages": [{"content": "hi"}]}, f"{at}.role"),
        *(Bad(CHAT, _message(role=role), f"{at}.role") for role in ("robot", "", 5, "function")),
        *(Bad(CHAT, _message(content=bad), f"{at}.content") for bad in NOT_CONTENT),
        Bad(CHAT, _message(content=["hi"]), f"{at}.content[0]"),
        Bad(CHAT, _message(content=[{"text": "hi"}]), f"{at}.content[0].type"),
        Bad(CHAT, _message(content=[{"type": "image_url"}]), f"{at}.content[0].type"),
        Bad(CHAT, _message(content=[{"type": "text", "text": 5}]), f"{at}.content[0].text"),
        Bad(CHAT, _message(name=""), f"{at}.name"),
        Bad(CHAT, _message(contents="hi"), f"{at}.contents"),
        Bad(CHAT, _message(content="word " * 100_000), "messages"),
        Bad(CHAT, {"messages": HI["messages"] * 4097}, "messages"),
        *_each(CHAT, "logprobs", 1, "true", []),
        *(
            Bad(CHAT, {"logprobs": True, "top_logprobs": bad}, "top_logprobs")
            for bad in (21, *NOT_COUNTS)
        ),
        Bad(CHAT, {"top_logprobs": 2}, "top_logprobs"),
        *_each(CHAT, "max_completion_tokens", 0, *NOT_COUNTS),
        Bad(CHAT, {"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        *_each(CHAT, "functions", [{"name": "f"}]),
        *_each(CHAT, "chat_template", "{{ messages }}"),
        *_each(CHAT, "prompt", "hi"),
    ]


def _tools() -> list[Bad]:
    function, choice = "tools[0].function", "tool_choice"
    called = "messages[0].tool_calls"
    return [
        *_each(CHAT, "tools", {}, "f", 5, [FUNCTION] * 129),
        *(Bad(CHAT, {"tools": [bad]}, "tools[0]") for bad in NOT_OBJECTS),
        Bad(CHAT, {"tools": [{}]}, "tools[0].type"),
        Bad(CHAT, {"tools": [{"type": "custom"}]}, "tools[0].type"),
        Bad(CHAT, {"tools": [{"type": "function"}]}, function),
        *(
            Bad(CHAT, _tool(name=bad), f"{function}.name")
            for bad in (None, "", "a b", "x" * 65, 5, "f\n")
        ),
        Bad(CHAT, {"tools": [FUNCTION, FUNCTION]}, "tools[1].function.name"),
        Bad(CHAT, _tool(description=5), f"{function}.description"),
        *(Bad(CHAT, _tool(parameters=bad), f"{function}.parameters") for bad in NOT_OBJECTS[:3]),
        Bad(CHAT, _tool(parameters={"description": "x" * 2**17}), f"{function}.parameters"),
        *(
            Bad(CHAT, _tool(parameters={"type": bad}), f"{function}.parameters.type")
            for bad in ("array", "string", "", 5, None, ["object", "null"])
        ),
        Bad(CHAT, _tool(strict=1), f"{function}.strict"),
        Bad(CHAT, _tool(more=1), f"{function}.more"),
        Bad(CHAT, {"tool_choice": "required"}, choice),
        Bad(CHAT, {"tool_choice": FUNCTION}, choice),
        *(
            Bad(CHAT, {"tools": [FUNCTION], "tool_choice": bad}, choice)
            for bad in ("any", *NOT_TEXTS[:3])
        ),
        Bad(CHAT, {"tools": [FUNCTION], "tool_choice": {}}, f"{choice}.type"),
        Bad(
            CHAT,
            {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            f"{choice}.function.name",
        ),
        Bad(
            CHAT,
            {"tools": [FUNCTION], "tool_choice": "required", "guided_regex": "a"},
            choice,
        ),
        *_each(CHAT, "parallel_tool_calls", *NOT_FLAGS),
        Bad(CHAT, _message(role="tool"), "messages[0].tool_call_id"),
        Bad(CHAT, _message(role="tool", tool_call_id=""), "messages[0].tool_call_id"),
        Bad(CHAT, _message(tool_call_id="1"), "messages[0].tool_call_id"),
        Bad(CHAT, _said(), "messages[0].content"),
        Bad(CHAT, _said(tool_calls={}), called),
        Bad(CHAT, _said(tool_calls=["f"]), f"{called}[0]"),
        Bad(CHAT, _call(id=""), f"{called}[0].id"),
        Bad(CHAT, _call(type="x"), f"{called}[0].type"),
        Bad(CHAT, _call(function={"name": "f"}), f"{called}[0].function.arguments"),
        Bad(
            CHAT, _call(function={"name": "f", "arguments": {}}), f"{called}[0].function.arguments"
        ),
        Bad(CHAT, {"messages": HI["messages"] + _call()["messages"] * 5000}, "messages"),
    ]


def _template(path: str) -> list[Bad]:
    """Variables for the chat template: its own names, and what makes it fail."""
    name = "chat_template_kwargs"
    reserved = ("messages", "tools", "raise_exception", "strftime_now", "self", "bos_token")
    return [
        *(Bad(path, {**HI, name: bad}, name) for bad in NOT_OBJECTS[:3]),
        Bad(path, {**HI, name: {"x": "y" * 20_000}}, name),
        *(Bad(path, {**HI, name: {bad: 5}}, f"{name}.{bad}") for bad in reserved),
        Bad(path, {**HI, name: {"x_token": "y"}}, f"{name}.x_token"),
        Bad(path, {**HI, name: {"add_generation_prompt": 1}}, f"{name}.add_generation_prompt"),
        Bad(
            path,
            {**HI, name: {"add_generation_prompt": True, "continue_final_message": True}},
            f"{name}.continue_final_message",
        ),
        Bad(
            path,
            {**_message(content=" "), name: {"continue_final_message": True}},
            f"{name}.continue_final_message",
        ),
        Bad(path, {**HI, name: {"x": NAN}}, f"{name}.x"),
        Bad(path, {**HI, name: nested(100)}, None),
        Bad(path, {name: {"x": [[]] * 70_000}, **HI}, None),
    ]


def _prompts() -> list[Bad]:
    long = {"prompt": [[5] * 1000] * 64, "n": 2}
    return [
        *_each(COMPLETIONS, "prompt", None, "", [], 5, {}, True, ["a"] * 65, [5] * 100_000),
        *_each(COMPLETIONS, "prompt", "word " * 100_000, ["fine", "word " * 2000]),
        *(
            Bad(COMPLETIONS, {"prompt": [1, bad]}, "prompt[1]")
            for bad in ("a", True, 2.0, -1, 10**6, 2**32, 10**30, NAN, NUMBER_1E400, None)
        ),
        Bad(COMPLETIONS, {"prompt": ["a", ""]}, "prompt[1]"),
        Bad(COMPLETIONS, {"prompt": [[]]}, "prompt[0]"),
        Bad(COMPLETIONS, {"prompt": [[1], [2, 10**6]]}, "prompt[1][1]"),
        Bad(COMPLETIONS, {"prompt": ["a"] * 64, "n": 3}, "n"),
        *_each(COMPLETIONS, "logprobs", 21, *NOT_COUNTS),
        *_each(COMPLETIONS, "echo", *NOT_FLAGS),
        *_each(COMPLETIONS, "best_of", 0, 2, True, 10**30),
        Bad(COMPLETIONS, {"best_of": 3, "n": 2}, "best_of"),
        *_each(COMPLETIONS, "suffix", "x"),
        *_each(COMPLETIONS, "prompt_embeds", "x"),
        *_each(COMPLETIONS, "messages", []),
        *_each(COMPLETIONS, "tools", []),
        Bad(COMPLETIONS, {**long, "prompt_logprobs": 20, "stream": False}, "prompt_logprobs"),
        Bad(COMPLETIONS, {**long, "echo": True, "logprobs": 20}, "prompt_logprobs"),
    ]


def _tokenizers() -> list[Bad]:
    return [
        *_each(TOKENIZE, "prompt", None, 5, [], "word " * 100_000),
        Bad(TOKENIZE, HI, "prompt"),
        Bad(TOKENIZE, {"tools": [FUNCTION]}, "tools"),
        Bad(TOKENIZE, {"prompt": None, **_message(role="robot")}, "messages[0].role"),
        *_each(TOKENIZE, "add_special_tokens", *NOT_FLAGS),
        *_each(TOKENIZE, "return_token_strs", *NOT_FLAGS),
        *_each(TOKENIZE, "model", None, 5, ""),
        *_each(TOKENIZE, "max_tokens", 5),
        *_each(DETOKENIZE, "tokens", None, 5, "x", {}, [1] * (2**20 + 1)),
        *(
            Bad(DETOKENIZE, {"tokens": [1, bad]}, "tokens[1]")
            for bad in ("a", True, 1.0, -1, 10**6, 2**32, 10**30, NAN, NUMBER_1E400, None)
        ),
        *_each(DETOKENIZE, "model", None, 5, ""),
        *_each(DETOKENIZE, "prompt", "hi"),
    ]


def _embeddings() -> list[Bad]:
    """Of a model that generates: what is wrong with the request is said first."""
    return [
        *_each(EMBEDDINGS, "input", None, "", [], 5, {}, ["a"] * 2049),
        Bad(EMBEDDINGS, {"input": [1, -1]}, "input[1]"),
        Bad(EMBEDDINGS, {"input": ["a", 5]}, "input[1]"),
        *_each(EMBEDDINGS, "dimensions", 0, *NOT_COUNTS),
        *_each(EMBEDDINGS, "encoding_format", "hex", 5, ""),
        *_each(EMBEDDINGS, "truncate_prompt_tokens", 5),
        *_each(EMBEDDINGS, "messages", []),
        Bad(EMBEDDINGS, {}, "model"),
    ]


def _templates() -> Iterator[Bad]:
    yield from _template(CHAT)
    for bad in _template(TOKENIZE):
        yield Bad(TOKENIZE, {"prompt": None, **bad.change}, bad.param)


FIELDS: dict[str, list[Bad]] = {
    "drawing, chat": _drawing(CHAT),
    "drawing, completions": _drawing(COMPLETIONS),
    "languages, chat": _languages(CHAT),
    "languages, completions": _languages(COMPLETIONS),
    "chat": _chat(),
    "tools": _tools(),
    "templates": list(_templates()),
    "prompts": _prompts(),
    "tokenizers": _tokenizers(),
    "embeddings": _embeddings(),
}
