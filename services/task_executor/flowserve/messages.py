"""What the shell and the engine process say to each other over the ring."""

import msgspec

from deepflow.core.sampling import SamplingParams


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Hold this model from now on; answered by Loaded or LoadFailed, with Progress before it."""

    deployment: str
    source: str
    device: str
    model_revision: str
    settings: dict[str, int] = {}  # EngineConfig fields that the shell overrides
    dtype: str = ""  # empty: what is best on the device
    kv_disk_folder: str = ""  # where blocks on disk go; empty: the system's folder for such
    policy: str = ""  # empty: the usual one


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    """Drop the model and every sequence; answered by Unloaded."""


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """One sequence; every answer about it carries the shell's handle."""

    handle: int
    prompt_token_ids: list[int]
    sampling: SamplingParams
    resume_token_ids: list[int] = []
    choice_index: int = 0
    cache_salt: bytes = b""
    priority: int = 0
    embed: bool = False  # answer with the prompt's vector instead of tokens
    context_id: str = ""  # of a kept context, whose tokens come before the prompt's


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Nobody waits for these any more; unknown handles are fine."""

    handles: list[int]


class KeepContext(msgspec.Struct, frozen=True, tag="keep_context"):
    """Compute these tokens and keep them by this name, in place of what had it. Answered by a
    ContextAnswer; a Cancel of the handle gives up."""

    handle: int
    context_id: str
    token_ids: list[int]
    ttl_seconds: float
    cache_salt: bytes = b""
    is_pinned: bool = False  # never let it leave the device


class DropContext(msgspec.Struct, frozen=True, tag="drop_context"):
    handle: int
    context_id: str
    cache_salt: bytes = b""


class ListContexts(msgspec.Struct, frozen=True, tag="list_contexts"):
    handle: int
    cache_salt: bytes = b""
    is_every_tenant: bool = False  # of all salts, without their bytes


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End the process after the current step."""


ContextRequest = KeepContext | DropContext | ListContexts
ToEngine = Load | Unload | Submit | Cancel | ContextRequest | Stop


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A start-up step began ("import_torch", "read_weights", ...) or ended (seconds is set)."""

    step: str
    seconds: float | None = None


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    deployment: str
    block_size: int
    kv_blocks: int
    max_sequences: int
    max_tokens: int
    vocab_size: int
    dtype: str = ""
    weight_bytes: int = 0
    kv_bytes: int = 0
    # With block_size, dtype and kv_dtype: what the identities of its blocks begin from.
    model_revision: str = ""
    kv_layout: str = ""
    max_step_tokens: int = 0
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    kv_dtype: str = ""
    # Of the tiers behind the device, each block as large as one of the device's; 0 = no such tier.
    kv_dram_blocks: int = 0
    kv_disk_blocks: int = 0


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    deployment: str
    message: str


class Unloaded(msgspec.Struct, frozen=True, tag="unloaded"):
    pass


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """The end of one sequence; reason is a FinishReason word: stop, length, cancelled, error."""

    handle: int
    reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    message: str = ""
    invalid: bool = False  # the request was at fault, not the engine
    param: str = ""  # the request's field at fault, where it is known
    busy: bool = False  # too much waits here; another engine may have room


class KvChange(msgspec.Struct, frozen=True, array_like=True):
    """Blocks that entered (stored) or left the prefix index, by 16-byte identity."""

    stored: bool
    parent: bytes  # identity before the first stored one; empty at the start of a prompt
    identities: list[bytes]


class TopLogprobs(msgspec.Struct, array_like=True):
    """Alternatives beside drawn tokens, as columns; only tokens of sequences that asked.

    The token at positions[i] of the step's token columns owns the next counts[i] items.
    """

    positions: list[int] = []
    counts: list[int] = []
    token_ids: list[int] = []  # likeliest first
    logprobs: list[float] = []

    def only(self, kept: list[int]) -> "TopLogprobs":
        """What is left when only the tokens at these positions are, in this order."""
        places = {position: place for place, position in enumerate(kept)}
        result, first = TopLogprobs([], [], [], []), 0
        for position, count in zip(self.positions, self.counts, strict=True):
            if position in places:
                result.positions.append(places[position])
                result.counts.append(count)
                result.token_ids += self.token_ids[first : first + count]
                result.logprobs += self.logprobs[first : first + count]
            first += count
        return result


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Of consecutive prompt tokens, each given what is before it; in order for one sequence."""

    handle: int
    first_position: int  # at least 1
    logprobs: list[float]
    ranks: list[int]  # 1 = the likeliest token
    top_token_ids: list[int]  # the same number for every position, likeliest first
    top_logprobs: list[float]


class Embedding(msgspec.Struct, frozen=True, array_like=True):
    handle: int
    values: bytes  # little-endian fp32


class Started(msgspec.Struct, frozen=True, array_like=True):
    """A sequence left the queue: this step was the first to compute some of it."""

    handle: int
    cached_tokens: int  # of its prompt, what need not be computed


class GrammarDone(msgspec.Struct, frozen=True, array_like=True):
    """A grammar was compiled, or could not be."""

    seconds: float
    is_good: bool


class ContextFacts(msgspec.Struct, frozen=True, array_like=True):
    context_id: str
    num_tokens: int
    bytes_used: int  # of its whole blocks, in all tiers together
    seconds_left: float
    is_pinned: bool
    cache_salt: bytes = b""


class ContextAnswer(msgspec.Struct, frozen=True, array_like=True):
    """To the request of this handle; a message says why it was refused."""

    handle: int
    contexts: list[ContextFacts]
    message: str = ""
    invalid: bool = False  # the request was at fault, not the engine
    param: str = ""
    busy: bool = False  # there is no room now
    cached_tokens: int = 0  # of a context that was kept, what need not be computed


class TierReport(msgspec.Struct, frozen=True, array_like=True):
    used_blocks: int  # that sequences, pinned contexts and copies hold
    kept_blocks: int  # that nobody holds, and that can be found again
    hit_tokens: int


class CopyCount(msgspec.Struct, frozen=True, array_like=True):
    source: int  # tiers, the nearest to the model is 0
    target: int
    is_good: bool
    count: int


class KvReport(msgspec.Struct, frozen=True, array_like=True):
    """How the cache stands, and what it did since the model was loaded."""

    tiers: list[TierReport]  # the device, the host's memory, its disk
    missed_tokens: int
    fetches: int  # sequences for which KV was fetched from a farther tier
    computes: int  # those for which computing it was thought quicker
    copies: list[CopyCount]
    fetch_waits: list[float] = []  # seconds that sequences waited for it, since the last report


class StepOutput(msgspec.Struct, frozen=True, tag="step"):
    """What one step produced, as columns; at most one token a sequence."""

    step: int
    seconds: float
    accepted: list[int]
    handles: list[int]
    first_indexes: list[int]
    token_ids: list[int]
    logprobs: list[float]
    finished: list[Finished]
    kv_changes: list[KvChange]
    waiting: int
    running: int
    free_blocks: int
    tops: TopLogprobs | None = None
    prompt_logprobs: list[PromptLogprobs] = []  # each before its sequence's first token
    embeddings: list[Embedding] = []  # each before the end of its sequence
    started: list[Started] = []
    preemptions: int = 0  # sequences that went back to the queue
    grammars: list[GrammarDone] = []
    contexts: list[ContextAnswer] = []
    kv: KvReport | None = None  # now and then


FromEngine = Progress | Loaded | LoadFailed | Unloaded | StepOutput
