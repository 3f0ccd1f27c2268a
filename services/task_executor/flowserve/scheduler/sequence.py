"""One sequence from submission to its end."""

from collections.abc import Set
from typing import TypeAlias

from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import PromptLogprobs, Submit
from services.task_executor.flowserve.rtc.block_chain import BlockChain
from services.task_executor.flowserve.rtc.copies import Tier

# Least goes first, greatest is preempted first; never equal for two sequences.
Rank: TypeAlias = tuple[int, ...]

NO_ROW = -1
NO_POPULATE = 0
NEVER = 1 << 62


class Sequence:
    """Waiting (no row), prefilling (computed < target) or decoding (one token not computed)."""

    __slots__ = (
        "arrival",
        "arrived_seconds",
        "blocks",
        "cached_tokens",
        "capacity",
        "chain",
        "choice_index",
        "computed",
        "flights",
        "handle",
        "is_considered",
        "limit",
        "pending",
        "populate",
        "preserve_at",
        "priority",
        "prompt_length",
        "rank",
        "row",
        "sampling",
        "scored",
        "sources",
        "stop_ids",
        "target",
        "token_ids",
    )

    row: int
    blocks: list[int]
    capacity: int  # tokens that the blocks have room for
    computed: int  # tokens whose KV is computed or being computed
    target: int  # tokens known on admission: where the prefill ends
    preserve_at: int  # computed tokens at which the next block is full
    is_considered: bool  # it is settled what is fetched for it before it runs

    def __init__(
        self,
        message: Submit,
        arrival: int,
        config: EngineConfig,
        eos_ids: Set[int],
        arrived_seconds: float = 0.0,
    ) -> None:
        self.handle = message.handle
        self.token_ids = message.prompt_token_ids + message.resume_token_ids
        self.prompt_length = len(message.prompt_token_ids)
        self.choice_index = message.choice_index
        self.sampling = message.sampling
        self.priority = message.priority
        self.arrival = arrival
        self.arrived_seconds = arrived_seconds
        self.rank: Rank = ()
        # The last token is drawn and never fed, so it needs no room in the cache.
        self.limit = min(self.prompt_length + message.sampling.max_tokens, config.max_tokens)
        self.stop_ids: Set[int] = frozenset() if message.sampling.ignore_eos else eos_ids
        if message.sampling.stop_token_ids:
            self.stop_ids = self.stop_ids | frozenset(message.sampling.stop_token_ids)
        self.scored = 1  # nothing is before the first prompt token, so it has no score
        root = config.identity_seed(message.cache_salt).root()
        self.chain = BlockChain(root, config.block_size)
        self.cached_tokens: int | None = None  # of the prompt, when it was first admitted
        self.flights = 0  # steps under way that run it
        self.pending = 0  # tokens that those will draw
        self.populate = NO_POPULATE  # what it waits for
        self.sources: list[Tier] = []  # where its leading blocks lay when they were fetched
        self.leave_row()

    @property
    def is_running(self) -> bool:
        return self.row >= 0

    @property
    def remaining(self) -> int:
        """Tokens of the prefill that no step has taken up yet."""
        return self.target - self.computed

    @property
    def wants_no_answer(self) -> bool:
        return self.sampling.max_tokens == 0

    @property
    def unscored(self) -> int:
        """Prompt tokens whose log probability was asked for and is not reported yet."""
        if self.sampling.prompt_logprobs is None:
            return 0
        return self.prompt_length - self.scored

    def take_scores(self, report: PromptLogprobs) -> PromptLogprobs | None:
        """What of the report is new: a prefill that began again scores some tokens twice."""
        known = self.scored - report.first_position
        if known >= len(report.logprobs):
            return None
        self.scored = report.first_position + len(report.logprobs)
        width = len(report.top_token_ids) // len(report.logprobs)
        return PromptLogprobs(
            self.handle,
            report.first_position + known,
            report.logprobs[known:],
            report.ranks[known:],
            report.top_token_ids[known * width :],
            report.top_logprobs[known * width :],
        )

    def take_row(self, row: int, blocks: list[int], num_matched: int) -> bool:
        """Start on all tokens known so far; the first `num_matched` blocks hold their KV.

        Answers whether it runs for the first time.
        """
        block_size = self.chain.block_size
        self.row = row
        self.blocks = blocks
        self.capacity = len(blocks) * block_size
        self.computed = num_matched * block_size
        self.target = len(self.token_ids)
        self.preserve_at = self.computed + block_size
        is_first = self.cached_tokens is None
        if is_first:
            self.cached_tokens = min(self.computed, self.prompt_length)
        return is_first

    def leave_row(self) -> None:
        self.row = NO_ROW
        self.blocks = []
        self.capacity = self.computed = self.target = 0
        self.preserve_at = NEVER
        self.is_considered = False

    def ending(self) -> str:
        """Why the last token known ends the answer; empty where it does not."""
        drawn = len(self.token_ids) - self.prompt_length
        if drawn and self.token_ids[-1] in self.stop_ids:
            return "stop"
        return "length" if len(self.token_ids) >= self.limit else ""
