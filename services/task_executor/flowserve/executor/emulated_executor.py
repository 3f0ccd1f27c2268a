"""Runs plans without a model: takes the time an accelerator would, and keeps honest KV state.

The next token is a function of every fingerprint of the context read back through the block
table, mixed with the draw of (seed, choice, position) where the sequence is not greedy. Nothing
depends on rows, block numbers, request ids or the clock.
"""

import time

import numpy as np

from deepflow.core.mixing import I64, U64, mix, uniform_bits
from deepflow.core.model_spec import ModelSpec
from services.task_executor.devices.emulated.fingerprints import FingerprintCache
from services.task_executor.devices.emulated.profiles import (
    AcceleratorProfile,
    Roofline,
    StepWork,
)
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.matching import Matchers, NoMatchers
from services.task_executor.flowserve.executor.row_table import RowTable, SampledRows, StepBatch
from services.task_executor.flowserve.plan import StepPlan, StepResult


class EmulatedExecutor:
    def __init__(
        self,
        spec: ModelSpec,
        profile: AcceleratorProfile,
        config: EngineConfig,
        matchers: Matchers | None = None,
    ) -> None:
        self._rows = RowTable(
            config.max_sequences, config.max_tokens, config.block_size, config.eos_token_ids
        )
        self._matchers = matchers if matchers is not None else NoMatchers()
        self._cache = FingerprintCache(
            config.kv_blocks, config.block_size, self._rows.block_tables.shape[1]
        )
        self._vocab_size = np.uint64(spec.vocab_size)
        self._roofline = None if profile.is_instant else Roofline(spec, profile)

    @property
    def cache(self) -> FingerprintCache:
        return self._cache

    def execute(self, plan: StepPlan) -> StepResult:
        began = time.monotonic()
        self._rows.update(plan, self._matchers)
        result = StepResult(plan.step, [], [], [], began=began)
        if plan.rows:
            batch = self._rows.lay_out(plan)
            self._cache.write(batch.slots, batch.token_ids, batch.positions)
            self._sample(plan, batch, result)
            self._wait(began, plan, batch)
        result.seconds = time.monotonic() - began
        return result

    def close(self) -> None:
        """Nothing is held that the interpreter would not give back."""

    def _sample(self, plan: StepPlan, batch: StepBatch, result: StepResult) -> None:
        sampled = self._rows.sampled(plan, batch)
        if not len(sampled.rows):
            return
        digests = self._cache.read(self._rows.block_tables, sampled.rows, sampled.ends)
        token_ids = self._draw(digests, sampled).astype(np.int64)
        self._constrain(token_ids, digests, sampled)
        self._rows.append(sampled, token_ids)
        result.rows = sampled.rows.tolist()
        result.token_ids = token_ids.tolist()
        result.logprobs = [0.0] * len(result.rows)
        result.completed_rows, failures = self._matchers.accept(sampled.rows, token_ids)
        if failures:
            result.fail(failures, is_their_own=True)

    def _draw(self, digests: U64, sampled: SampledRows) -> U64:
        rows = self._rows.sampling
        is_drawn = rows.temperatures[sampled.rows] > 0
        if is_drawn.any():
            positions = (sampled.ends - rows.prompt_lengths[sampled.rows]).view(np.uint64)
            choices = rows.choices[sampled.rows].view(np.uint64)
            draws = uniform_bits(rows.seeds[sampled.rows], choices, positions)
            # +1, for a draw of 0 must differ from no draw at all.
            digests ^= mix(draws + np.uint64(1)) * is_drawn
        return mix(digests) % self._vocab_size

    def _constrain(self, token_ids: I64, digests: U64, sampled: SampledRows) -> None:
        """Replace what a grammar or min_tokens does not allow; the digest decides by what."""
        vocabulary = int(self._vocab_size)
        early = self._rows.sampling.forbidden(sampled.rows, sampled.ends)
        banned: dict[int, I64] = {}
        if early is not None:
            banned = {int(e): early.token_ids[early.entries == e] for e in set(early.entries)}
        for entry, ids in banned.items():
            if token_ids[entry] in ids:
                token_ids[entry] = _choose(np.delete(np.arange(vocabulary), ids), digests[entry])
        if (masks := self._matchers.masks(sampled.rows)) is not None:
            for entry, bits in zip(*masks, strict=True):
                is_allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[:vocabulary]
                allowed = np.flatnonzero(is_allowed)
                # Where the grammar allows only what would end the answer too early, it ends.
                later = np.setdiff1d(allowed, banned.get(int(entry), allowed[:0]))
                token_ids[entry] = _choose(later if len(later) else allowed, digests[entry])

    def _wait(self, began: float, plan: StepPlan, batch: StepBatch) -> None:
        if self._roofline is None:
            return
        seconds = self._roofline.step_seconds(_work_of(plan, batch))
        remaining = began + seconds - time.monotonic()
        if remaining > 0:
            time.sleep(remaining)  # this is the device at work


def _choose(allowed: I64, digest: np.uint64) -> int:
    """0 where nothing is allowed: whoever made the mask refuses it then."""
    return int(allowed[int(digest) % len(allowed)]) if len(allowed) else 0


def _work_of(plan: StepPlan, batch: StepBatch) -> StepWork:
    # Token i of an entry sees starts + i + 1 keys.
    pairs = batch.counts * batch.starts + batch.counts * (batch.counts + 1) // 2
    return StepWork(
        tokens=len(batch.positions),
        sampled=sum(plan.samples),
        context_tokens=int(batch.ends.sum()),
        attended_pairs=int(pairs.sum()),
    )
