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


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Nobody waits for these any more; unknown handles are fine."""

    handles: list[int]


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End the process after the current step."""


ToEngine = Load | Unload | Submit | Cancel | Stop


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


class KvChange(msgspec.Struct, frozen=True, array_like=True):
    """Blocks that entered (stored) or left the prefix index, by 16-byte identity."""

    stored: bool
    parent: bytes  # identity before the first stored one; empty at the start of a prompt
    identities: list[bytes]


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


FromEngine = Progress | Loaded | LoadFailed | Unloaded | StepOutput
