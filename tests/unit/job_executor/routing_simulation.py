"""A group of task executors that take tasks, cache blocks and need time, without any of them.

Each has an LRU cache of blocks, computes one prompt at a time and answers a few at once. The policy
sees what a job executor would: its own tasks, and whose cache holds how much of the prompt.
"""

import heapq
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from services.job_executor.scheduling.policy import (
    GroupView,
    Placement,
    Policy,
    RequestFeatures,
    TaskExecutorLoad,
)

BLOCK_TOKENS = 16
PREFILL_TOKENS_PER_SECOND = 8000.0
ANSWER_TOKENS = 64
ANSWER_SECONDS = 1.0

Prompt = tuple[int, ...]  # names of its blocks, each of which names what is before it


@dataclass
class Request:
    at: float
    blocks: Prompt


@dataclass
class Worker:
    name: str
    capacity: int
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    is_free_at: float = 0.0  # to compute the next prompt
    num_running: int = 0
    num_taken: int = 0
    computed_tokens: int = 0

    def matched(self, blocks: Prompt) -> int:
        count = 0
        while count < len(blocks) and blocks[count] in self.cache:
            count += 1
        return count

    def take(self, request: Request) -> float:
        """When the first token comes."""
        uncached = (len(request.blocks) - self.matched(request.blocks)) * BLOCK_TOKENS
        for block in reversed(request.blocks):
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.capacity:
            self.cache.popitem(last=False)
        self.num_running += 1
        self.num_taken += 1
        self.computed_tokens += uncached
        self.is_free_at = max(self.is_free_at, request.at) + uncached / PREFILL_TOKENS_PER_SECOND
        return self.is_free_at


@dataclass(frozen=True)
class Outcome:
    hit_rate: float  # of all prompt tokens, those that were cached
    imbalance: float  # tasks of the busiest over the mean
    mean_wait: float  # seconds to the first token, once the caches are warm
    worst_wait: float  # 99th percentile of it


def simulate(
    policy: Policy, requests: list[Request], *, workers: int = 4, capacity: int = 4000
) -> Outcome:
    group = [Worker(f"te-{number}", capacity) for number in range(workers)]
    by_name = {worker.name: worker for worker in group}
    ends: list[tuple[float, str]] = []
    waits: list[float] = []
    for request in requests:
        while ends and ends[0][0] <= request.at:
            by_name[heapq.heappop(ends)[1]].num_running -= 1
        view = GroupView(tuple(_seen(worker, request) for worker in group))
        features = RequestFeatures("m", len(request.blocks) * BLOCK_TOKENS, ANSWER_TOKENS)
        worker = by_name[policy.choose(features, view).task_executor_id]
        first_token = worker.take(request)
        waits.append(first_token - request.at)
        heapq.heappush(ends, (first_token + ANSWER_SECONDS, worker.name))
    tokens = sum(len(request.blocks) for request in requests) * BLOCK_TOKENS
    waits = sorted(waits[len(waits) // 4 :])
    return Outcome(
        hit_rate=1 - sum(worker.computed_tokens for worker in group) / tokens,
        imbalance=max(worker.num_taken for worker in group) * workers / len(requests),
        mean_wait=sum(waits) / len(waits),
        worst_wait=waits[int(len(waits) * 0.99)],
    )


def _seen(worker: Worker, request: Request) -> TaskExecutorLoad:
    return TaskExecutorLoad(
        worker.name,
        worker.num_running,
        cached_tokens=worker.matched(request.blocks) * BLOCK_TOKENS,
    )


class RoundRobin:
    def __init__(self) -> None:
        self._turn = 0

    def choose(self, features: RequestFeatures, group: GroupView) -> Placement:
        self._turn += 1
        return Placement(group.executors[self._turn % len(group.executors)].id)


class LongestPrefixOnly:
    def choose(self, features: RequestFeatures, group: GroupView) -> Placement:
        return Placement(max(group.executors, key=lambda it: it.cached_tokens).id)


# ── what comes in ────────────────────────────────────────────────────────────────────────────────


def shared_system_prompts(
    seed: int, *, count: int = 1200, per_second: float = 20.0
) -> list[Request]:
    """Eight long system prompts, some far more popular than others; short questions."""
    draw, names = random.Random(seed), _names()
    systems = [_new(names, 128) for _ in range(8)]
    weights = [1 / (rank + 1) for rank in range(8)]
    return [
        Request(at, draw.choices(systems, weights)[0] + _new(names, draw.randint(2, 12)))
        for at in _arrivals(draw, count, per_second)
    ]


def conversations(seed: int, *, count: int = 1200, per_second: float = 20.0) -> list[Request]:
    """Turns of 60 conversations under one system prompt; each brings all that was said before."""
    draw, names = random.Random(seed), _names()
    system = _new(names, 32)
    open_ones: list[Prompt] = [system] * 60
    requests = []
    for at in _arrivals(draw, count, per_second):
        number = draw.randrange(len(open_ones))
        asked = open_ones[number] + _new(names, draw.randint(2, 30))
        requests.append(Request(at, asked))
        # The answer is part of the next turn; a conversation that became long is a new one's start.
        grown = asked + _new(names, ANSWER_TOKENS // BLOCK_TOKENS)
        open_ones[number] = system if len(grown) > 400 else grown
    return requests


def unrelated(seed: int, *, count: int = 1200, per_second: float = 15.0) -> list[Request]:
    """Nothing is shared: only load counts."""
    draw, names = random.Random(seed), _names()
    return [
        Request(at, _new(names, draw.randint(4, 120))) for at in _arrivals(draw, count, per_second)
    ]


def one_for_all(seed: int, *, count: int = 1200, per_second: float = 40.0) -> list[Request]:
    """Every request begins with the same long prompt, at a rate that one alone cannot serve."""
    draw, names = random.Random(seed), _names()
    system = _new(names, 256)
    return [
        Request(at, system + _new(names, draw.randint(20, 60)))
        for at in _arrivals(draw, count, per_second)
    ]


WORKLOADS: dict[str, Callable[[int], list[Request]]] = {
    "shared system prompts": shared_system_prompts,
    "conversations": conversations,
    "unrelated": unrelated,
    "one prompt for all": one_for_all,
}


def _names() -> Iterator[int]:
    return iter(range(1 << 62))


def _new(names: Iterator[int], count: int) -> Prompt:
    return tuple(next(names) for _ in range(count))


def _arrivals(draw: random.Random, count: int, per_second: float) -> Iterator[float]:
    at = 0.0
    for _ in range(count):
        at += draw.expovariate(per_second)
        yield at
