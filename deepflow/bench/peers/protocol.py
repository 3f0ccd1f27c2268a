"""How a benchmark drives an engine in a process of its own: one JSON object a line, both ways.

The first line in is the setup. The engine answers {"ready": true} once it has produced a token, or
{"refused": WHY} where it cannot run that, and ends.
Then for every {"prompts": ..., "output": N} it answers {"seconds": S}; at the end of its input it
ends. Ours keeps a trace: for {"trace": PATH} it answers with its sums, writes it to a file where
PATH is not empty, and begins a new one. Standard library only, because the environment of a peer
holds nothing of ours.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Setup:
    model: str  # a folder
    device: str
    dtype: str
    requests: int  # at a time
    max_tokens: int  # prompt and answer together
    tensor_parallel: int = 1  # of ours only
    pipeline_parallel: int = 1


class Engine(Protocol):
    def generate(self, prompts: list[list[int]], output: int) -> list[list[int]]:
        """Greedy, exactly `output` tokens for each prompt, whatever end token is drawn."""


@runtime_checkable
class TracedEngine(Engine, Protocol):
    def take_trace(self, path: str) -> dict[str, float]:
        """How much of the time since the last call went where."""


def serve(build: Callable[[Setup], Engine]) -> None:
    requests, answers = sys.stdin, _claim_stdout()
    setup = Setup(**json.loads(requests.readline()))
    try:
        engine = build(setup)
    except ValueError as error:
        _say(answers, {"refused": str(error)})
        return
    engine.generate([[1, 2, 3]], 1)
    _say(answers, {"ready": True})
    for line in requests:
        asked = json.loads(line)
        if "trace" in asked:
            assert isinstance(engine, TracedEngine)
            _say(answers, engine.take_trace(asked["trace"]))
        else:
            _say(answers, {"seconds": _timed(engine, **asked)})


def _timed(engine: Engine, prompts: list[list[int]], output: int) -> float:
    began = time.perf_counter()
    answers = engine.generate(prompts, output)
    seconds = time.perf_counter() - began
    lengths = {len(answer) for answer in answers}
    if len(answers) != len(prompts) or lengths != {output}:
        raise RuntimeError(f"asked for {len(prompts)} x {output} tokens, got lengths {lengths}")
    return seconds


def _claim_stdout() -> IO[str]:
    """The protocol's own stream; whoever prints, a child too, writes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()
