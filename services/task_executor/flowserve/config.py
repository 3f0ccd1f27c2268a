"""Every number the engine's decisions rest on, fixed once the model and its device are known."""

import msgspec

from deepflow.core.blocks import BlockIdentitySeed


class EngineConfigError(ValueError):
    """Names the field, its value and what would be right."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    block_size: int  # tokens; what the device's attention kernels ask for
    kv_blocks: int  # the trash block included
    max_tokens: int  # prompt and answer of one sequence together
    vocab_size: int
    max_sequences: int = 64  # rows of the batch
    max_step_tokens: int = 2048  # positions computed in one step
    max_waiting: int = 4096  # sequences queued for a row; one more is refused
    eos_token_ids: tuple[int, ...] = ()
    steps_in_flight: int = 1  # 2: the next step is planned while one runs
    tensor_parallel: int = 1  # ranks that share every layer
    pipeline_parallel: int = 1  # stages, each with some of the layers
    # Blocks kept in the host's memory and on its disk; 0 = that tier does not exist.
    kv_dram_blocks: int = 0
    kv_disk_blocks: int = 0
    policy: str = "priority"
    # Targets of the policy slo, 0 = none: the time between two tokens, and until the first one.
    tpot_seconds: float = 0.0
    ttft_seconds: float = 0.0
    model_revision: str = ""
    adapter: str = ""
    dtype: str = ""  # what the linears compute in
    kv_dtype: str = ""  # what KV is kept in; another one where the linears are int8
    kv_layout: str = ""
    has_logits: bool = True  # an emulated device has none, so nothing can be said about them
    # For people: what the model holds of its device's memory.
    weight_bytes: int = 0
    kv_bytes: int = 0

    def __post_init__(self) -> None:
        self._require_at_least("block_size", 1)
        self._require_at_least("kv_blocks", 2, "the trash block and one that holds tokens")
        self._require_at_least("max_tokens", 2, "one token of prompt and one of answer")
        self._require_at_least("vocab_size", 1)
        self._require_at_least("max_sequences", 1)
        self._require_at_least(
            "max_step_tokens", self.max_sequences, "max_sequences, so that no row stands still"
        )
        self._require_at_least("max_waiting", 1)
        self._require_at_least("kv_dram_blocks", 0)
        self._require_at_least("kv_disk_blocks", 0)
        most = max(2, self.pipeline_parallel)
        if not 1 <= self.steps_in_flight <= most:
            choices = "1 or 2" if most == 2 else f"from 1 to {most}, the number of stages"
            raise EngineConfigError(
                f"steps_in_flight is {self.steps_in_flight}, but must be {choices}"
            )
        self._require_room_for_longest()
        for token in self.eos_token_ids:
            if not 0 <= token < self.vocab_size:
                raise EngineConfigError(
                    f"eos_token_ids holds {token}, but ids go from 0 to {self.vocab_size - 1}"
                )

    @property
    def runs_ahead(self) -> bool:
        """Whether a token may be planned before the one in front of it is known. Not in a
        pipeline: its first stage would need that one before its last has drawn it."""
        return self.pipeline_parallel == 1

    @property
    def micro_batches(self) -> int:
        """Into how many steps the decoding sequences are dealt, so that every stage has one."""
        return 1 if self.runs_ahead else min(self.pipeline_parallel, self.steps_in_flight)

    @property
    def usable_blocks(self) -> int:
        return self.kv_blocks - 1

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def identity_seed(self, tenant_salt: bytes) -> BlockIdentitySeed:
        return BlockIdentitySeed(
            model_revision=self.model_revision,
            adapter=self.adapter,
            block_size=self.block_size,
            dtype=self.dtype,
            kv_dtype=self.kv_dtype,
            kv_layout=self.kv_layout,
            tenant_salt=tenant_salt,
        )

    def _require_at_least(self, field: str, least: int, why: str = "") -> None:
        value = getattr(self, field)
        if value < least:
            reason = f" ({why})" if why else ""
            raise EngineConfigError(f"{field} is {value}, but must be {least} or more{reason}")

    def _require_room_for_longest(self) -> None:
        """Alone in the engine every sequence must fit, or preemption could not end."""
        room = self.usable_blocks * self.block_size
        if self.max_tokens > room:
            raise EngineConfigError(
                f"max_tokens is {self.max_tokens}, but {self.kv_blocks} KV blocks of "
                f"{self.block_size} tokens hold {room}; lower max_tokens or raise kv_blocks to "
                f"{self.blocks_for(self.max_tokens) + 1}"
            )
