"""Grammars for forced calls, walked by the library that the engine draws with."""

import json
import random
from pathlib import Path

import llguidance
import pytest
from tokenizers import Tokenizer

from deepflow.v1 import jobs_pb2
from services.job_executor.tools.forcing import forced_calls
from services.job_executor.tools.formats import ToolFormat, format_of
from tests.unit.job_executor.model_folders import byte_level_tokenizer
from tests.unit.job_executor.tool_templates import HERMES_LIKE, LLAMA_LIKE, MISTRAL_LIKE, THINKING
from tests.unit.job_executor.tools.reading import Read, read

SCHEMA = {
    "$defs": {"size": {"enum": ["s", "m"]}},
    "type": "object",
    "properties": {"size": {"$ref": "#/$defs/size"}, "count": {"type": "integer"}},
    "required": ["size"],
    "additionalProperties": False,
}
TOOLS = [
    jobs_pb2.Tool(name="order", parameters_json=json.dumps(SCHEMA, indent=2)),
    jobs_pb2.Tool(name="stop-it"),
    jobs_pb2.Tool(name="open", parameters_json='{"properties": {"a": {"type": "null"}}}'),
]
TAGS = ["<tool_call>", "</tool_call>"]
NAMES = [tool.name for tool in TOOLS]
FIRST = 3


def form(name: str) -> ToolFormat:
    found = format_of(name, "")
    assert found is not None
    return found


class Engine:
    """Draws any token that the grammar allows, mostly one of a wanted text."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        tokenizer.save(str(folder / "tokenizer.json"))
        self.tokenizer = tokenizer
        self._inner = llguidance.LLTokenizer(str(folder / "tokenizer.json"), eos_token=1)

    def matcher(self, tools: list[jobs_pb2.Tool], name: str, *, is_single: bool) -> "Walk":
        # As where other tools stand before them, which are not asked for.
        wanted = dict(enumerate(tools, start=FIRST))
        grammar = forced_calls(
            wanted, form(name), is_single=is_single, id_of=self.tokenizer.token_to_id
        )
        assert grammar.param == "tools"
        assert list(grammar.part_params) == [f"tools[{i}].function.parameters" for i in wanted]
        lark = llguidance.LLMatcher.grammar_from_lark(grammar.lark)
        matcher = llguidance.LLMatcher(self._inner, lark)
        assert not matcher.is_error(), matcher.get_error()
        return Walk(self.tokenizer, matcher)


class Walk:
    def __init__(self, tokenizer: Tokenizer, matcher: llguidance.LLMatcher) -> None:
        self._tokenizer = tokenizer
        self._matcher = matcher

    def takes(self, text: str) -> bool:
        """Whether the text is a whole answer."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._matcher.try_consume_tokens(ids) == len(ids) and self._matcher.is_accepting()

    def draw(self, draws: random.Random, most: int) -> str | None:
        """None where it did not come to an end within so many tokens."""
        ids: list[int] = []
        while not self._matcher.is_stopped() and len(ids) < most:
            mask = self._matcher.compute_logit_bias()
            allowed = [i for i in range(self._tokenizer.get_vocab_size()) if mask[i]]
            if self._matcher.is_accepting() and draws.random() < 0.5:
                break
            token_id = draws.choice([i for i in allowed if i != 1])
            assert self._matcher.consume_token(token_id)
            ids.append(token_id)
        if not self._matcher.is_accepting():
            return None
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


@pytest.fixture(scope="module", params=[False, True], ids=["spelled", "special"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    tokenizer = byte_level_tokenizer()
    if request.param:
        tokenizer.add_special_tokens(TAGS)
    return Engine(tmp_path_factory.mktemp("engine"), tokenizer)


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "is_word"),
    [
        (hermes("order", '{"size": "m", "count": 2}'), True),
        (hermes("stop-it", "{}"), True),
        (hermes("order", '{"size": "s"}') + "\n" + hermes("open", '{"a": null}'), True),
        (hermes("order", '{"size": "xl"}'), False),
        (hermes("order", "{}"), False),
        (hermes("other", "{}"), False),
        (hermes("stop-it", "[]"), False),
        (hermes("open", '{"a": null, "b": [2, 3]}'), True),
        (hermes("open", '{"a":  null}'), False),
        ("I would rather not.", False),
        ("", False),
    ],
)
def test_an_answer_consists_of_calls_by_their_schemas(
    engine: Engine, text: str, is_word: bool
) -> None:
    assert engine.matcher(TOOLS, "hermes", is_single=False).takes(text) == is_word


def test_one_call_can_be_all(engine: Engine) -> None:
    one = hermes("stop-it", "{}")
    assert engine.matcher(TOOLS, "hermes", is_single=True).takes(one)
    assert not engine.matcher(TOOLS, "hermes", is_single=True).takes(f"{one}\n{one}")
    assert not engine.matcher(TOOLS[:1], "hermes", is_single=True).takes(one)


def test_a_tool_without_a_schema_takes_no_arguments(engine: Engine) -> None:
    assert engine.matcher(TOOLS[1:2], "hermes", is_single=True).takes(hermes("stop-it", "{}"))
    other = hermes("stop-it", '{"a": 1}')
    assert not engine.matcher(TOOLS[1:2], "hermes", is_single=True).takes(other)
    open_tool = [jobs_pb2.Tool(name="stop-it", parameters_json='{"type": "object"}')]
    assert engine.matcher(open_tool, "hermes", is_single=True).takes(other)


def test_the_other_format_is_forced_as_it_is_read(engine: Engine) -> None:
    call = '{"name": "order", "parameters": {"size": "s"}}'
    assert engine.matcher(TOOLS, "llama3", is_single=False).takes(f"{call}; {call}")
    assert not engine.matcher(TOOLS, "llama3", is_single=True).takes(f"{call}; {call}")


@pytest.mark.parametrize("name", ["hermes", "llama3"])
def test_whatever_is_drawn_is_read_as_calls(engine: Engine, name: str) -> None:
    found: list[Read] = []
    for seed in range(6):
        walk = engine.matcher(TOOLS[:1], name, is_single=False)
        text = walk.draw(random.Random(seed), 300)
        if text is not None:
            found.append(read(form(name).new_parser(NAMES), list(text)))
    assert found
    for result in found:
        assert result.text == "" and result.calls and all(result.complete)
        for called, arguments in result.calls:
            assert called == "order" and json.loads(arguments)["size"] in ("s", "m")


def test_the_format_is_told_by_the_template_or_chosen() -> None:
    told = {source: format_of("", source) for source in (HERMES_LIKE, THINKING, LLAMA_LIKE)}
    names = [None if found is None else found.name for found in told.values()]
    assert names == ["hermes", "hermes", "llama3"]
    assert format_of("", MISTRAL_LIKE) is None
    assert format_of("", "<tool_call>\\n<function=f>{{ call.arguments }}</tool_call>") is None
    escaped = '{{ "<tool_call>{\\"name\\": …, \\"arguments\\": …}" }}'
    assert format_of("", escaped) is form("hermes")
    assert form("llama3") is format_of("llama3", HERMES_LIKE)
    assert format_of("unheard-of", HERMES_LIKE) is None
