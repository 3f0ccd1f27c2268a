"""Structured output from the packaged model: what it draws is a word of the language."""

import json
import re
from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer

from deepflow.core.sampling import Grammar, SamplingParams
from deepflow.demo import MODEL_DIR
from services.task_executor.flowserve.engine import FlowServe, Generation
from services.task_executor.flowserve.grammar.row_matchers import RowMatchers

PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "people": {"type": "integer", "minimum": 0, "maximum": 99_999},
        "tags": {"type": "array", "items": {"enum": ["old", "new", "far"]}, "maxItems": 3},
    },
    "required": ["city", "people"],
    "additionalProperties": False,
}
GRAMMARS = [
    Grammar("json_schema", json.dumps(PLACE)),
    None,
    Grammar("regex", r"[A-Z][a-z]{2,8}, \d{1,3} years"),
    Grammar("choice", '["yes", "no", "per\\"haps"]'),
    Grammar("lark", 'start: item ("," item)*\nitem: /[a-z]{1,5}/ | %json {"type": "boolean"}'),
]
TOKENIZER = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
PROMPT: list[int] = TOKENIZER.encode("What is a gateway?").ids


@pytest.fixture(scope="module")
def engine() -> Iterator[FlowServe]:
    with FlowServe(MODEL_DIR, max_sequences=16, cpu_threads=1) as engine:
        yield engine


def sampling(index: int, temperature: float = 1.3) -> SamplingParams:
    grammar = GRAMMARS[index % len(GRAMMARS)]
    most = 60 if grammar else 12
    return SamplingParams(most, temperature, seed=index, grammar=grammar, logit_bias={0: -50.0})


def text_of(answer: Generation) -> str:
    text: str = TOKENIZER.decode(answer.token_ids)
    return text


def is_word(text: str, grammar: Grammar | None) -> bool:
    match grammar:
        case None:
            return True
        case Grammar("json_schema"):
            value = json.loads(text)
            return {"city", "people"} <= set(value) <= {"city", "people", "tags"}
        case Grammar("choice", source):
            return text in json.loads(source)
        case Grammar("regex", source):
            return re.fullmatch(source, text) is not None
    return re.fullmatch(r"([a-z]{1,5}|true|false)(,([a-z]{1,5}|true|false))*", text) is not None


def test_what_is_drawn_is_a_word_of_the_language(engine: FlowServe) -> None:
    params = [sampling(index) for index in range(10)]
    answers = engine.generate([PROMPT] * len(params), params)
    ended = 0
    for answer, own in zip(answers, params, strict=True):
        assert answer.finish_reason in ("stop", "length"), answer.message
        if answer.finish_reason == "stop":
            ended += own.grammar is not None
            assert is_word(text_of(answer), own.grammar), text_of(answer)
        assert all(logprob <= 0 for logprob in answer.logprobs)
    assert ended >= 5


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_alone_and_in_a_batch_the_answer_is_the_same(engine: FlowServe, temperature: float) -> None:
    params = [sampling(index, temperature) for index in range(len(GRAMMARS))]
    together = engine.generate([PROMPT] * len(params), params)
    for own, answer in zip(params, together, strict=True):
        (alone,) = engine.generate([PROMPT], own)
        assert alone.token_ids == answer.token_ids


def test_a_preempted_answer_is_the_same(engine: FlowServe, monkeypatch: pytest.MonkeyPatch) -> None:
    params = [SamplingParams(70, 1.3, seed=seed, grammar=GRAMMARS[0]) for seed in range(4)]
    expected = engine.generate([PROMPT] * 4, params)
    replayed: list[int] = []
    admit = RowMatchers.admit

    def counting(self: RowMatchers, row: int, grammar: Grammar, answer: list[int]) -> None:
        replayed.append(len(answer))
        admit(self, row, grammar, answer)

    monkeypatch.setattr(RowMatchers, "admit", counting)
    with FlowServe(MODEL_DIR, kv_blocks=6, max_tokens=80, cpu_threads=1) as tight:
        answers = tight.generate([PROMPT] * 4, params)
    assert max(replayed) > 0, "nobody was preempted"
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]


def test_a_stream_is_held_until_its_grammar_is_ready(engine: FlowServe) -> None:
    grammar = Grammar("regex", "[ab]{7}")
    tokens = [token for token, _ in engine.stream(PROMPT, SamplingParams(20, grammar=grammar))]
    assert re.fullmatch("[ab]{7}", TOKENIZER.decode(tokens))
    (refused,) = engine.generate([PROMPT], SamplingParams(20, grammar=Grammar("regex", "(")))
    assert refused.finish_reason == "error" and "unclosed group" in refused.message


def test_min_tokens_hold_an_answer_open_while_the_grammar_allows_it(engine: FlowServe) -> None:
    (open_answer,) = engine.generate(
        [PROMPT], SamplingParams(30, min_tokens=8, grammar=Grammar("regex", "[ab]*"))
    )
    assert len(open_answer.token_ids) >= 8
    (closed,) = engine.generate(
        [PROMPT], SamplingParams(30, min_tokens=8, grammar=Grammar("regex", "(a?)"))
    )
    assert closed.finish_reason == "stop" and text_of(closed) in ("", "a")
