"""Runs plans on a device that torch drives: prefill chunks and decodes in one flat forward."""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from deepflow.core.mixing import I64
from services.task_executor.devices.base import AttentionInputs, Device, LayerKv
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.executor.matching import Matchers, NoMatchers
from services.task_executor.flowserve.executor.prompt_scores import is_finite, score_prompts
from services.task_executor.flowserve.executor.row_table import RowTable, SampledRows, StepBatch
from services.task_executor.flowserve.executor.sampling_inputs import sampling_columns
from services.task_executor.flowserve.messages import TopLogprobs
from services.task_executor.flowserve.models.base import Model
from services.task_executor.flowserve.plan import StepPlan, StepResult
from services.task_executor.flowserve.sampling.adjustments import TokenMasks
from services.task_executor.flowserve.sampling.host_sample import (
    HostSample,
    HostTops,
    read_sample,
)
from services.task_executor.flowserve.sampling.sampler import SamplingColumns, sample, settle

# Other ranks that hold the same rows are told (step, rows, tokens) as soon as they are drawn.
TellDrawn = Callable[[int, SampledRows, npt.NDArray[np.integer]], None]
NOT_FINITE = "the model gave logits that are not finite"


class TorchExecutor:
    def __init__(
        self,
        model: Model,
        device: Device,
        kv: list[LayerKv],
        config: EngineConfig,
        matchers: Matchers | None = None,
        tell_drawn: TellDrawn | None = None,
    ) -> None:
        self._model = model
        self._device = device
        self._kv = kv
        self._matchers = matchers if matchers is not None else NoMatchers()
        self._tell_drawn = tell_drawn
        self._rows = RowTable(
            config.max_sequences, config.max_tokens, config.block_size, config.eos_token_ids
        )

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        began = time.monotonic()
        self._rows.update(plan, self._matchers)
        result = StepResult(plan.step, [], [], [], began=began)
        if plan.rows:
            batch = self._rows.lay_out(plan)
            hidden = self._forward(batch)
            reports = score_prompts(self._rows, batch, hidden, self._model.logits)
            result.prompt_logprobs = [report for report in reports if is_finite(report)]
            sampled = self._rows.sampled(plan, batch)
            if len(sampled.rows):
                last_tokens = self._to_device(batch.counts.cumsum()[sampled.entries] - 1)
                self._sample(self._model.logits(hidden[last_tokens]), sampled, result)
            else:  # nothing is read, but who gets the answer takes the step for done
                self._device.current_stream().record().wait()
            if len(result.prompt_logprobs) < len(reports):
                result.fail({r.handle: NOT_FINITE for r in reports if not is_finite(r)})
        result.seconds = time.monotonic() - began
        return result

    def close(self) -> None:
        self._kv = []

    def _forward(self, batch: StepBatch) -> torch.Tensor:
        return self._model.forward(
            self._to_device(batch.token_ids.astype(np.int64)),
            self._to_device(batch.positions),
            self._device.begin_attention(self._attention_inputs(batch)),
            self._kv,
        )

    def _attention_inputs(self, batch: StepBatch) -> AttentionInputs:
        size = self._rows.block_size
        width = -(-int(batch.ends.max()) // size)
        return AttentionInputs(
            block_size=size,
            counts=batch.counts.tolist(),
            lengths=batch.ends.tolist(),
            block_tables=torch.from_numpy(self._rows.block_tables[batch.rows, :width]),
            slots=torch.from_numpy(batch.slots),
        )

    def _sample(self, logits: torch.Tensor, sampled: SampledRows, result: StepResult) -> None:
        columns = sampling_columns(self._rows, sampled, self._to_device)
        drawn = self._draw(logits, columns, self._masks(sampled.rows))
        # A failed row goes on with token 0: a plan made before anyone knew must still run.
        self._rows.append(sampled, drawn.token_ids)
        if self._tell_drawn is not None:
            self._tell_drawn(result.step, sampled, drawn.token_ids)
        wanted = self._rows.sampling.alternatives[sampled.rows]
        _report(drawn, sampled.rows, wanted, result)
        completed, failures = self._matchers.accept(
            sampled.rows[drawn.is_valid], np.array(result.token_ids, dtype=np.int64)
        )
        result.completed_rows = completed
        if failures:
            result.fail(failures, is_their_own=True)

    def _draw(
        self, logits: torch.Tensor, columns: SamplingColumns, masks: TokenMasks | None
    ) -> HostSample:
        """The one place of a step that waits for the device; twice where a row was not sure."""
        sampled = sample(logits, columns, masks)
        drawn = read_sample(sampled, self._device.to_host)
        if drawn.is_sure.all():
            return drawn
        rows = self._to_device(np.flatnonzero(~drawn.is_sure))
        return read_sample(settle(sampled, rows), self._device.to_host)

    def _masks(self, rows: I64) -> TokenMasks | None:
        masks = self._matchers.masks(rows)
        if masks is None:
            return None
        entries, bits = masks
        return TokenMasks(self._to_device(entries), self._to_device(bits))

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        return self._device.to_device(values)


def _report(drawn: HostSample, rows: I64, wanted: I64, result: StepResult) -> None:
    is_valid = drawn.is_valid
    if not is_valid.all():
        result.failures = {int(row): NOT_FINITE for row in rows[~is_valid]}
    result.rows = rows[is_valid].tolist()
    result.token_ids = drawn.token_ids[is_valid].tolist()
    result.logprobs = drawn.logprobs[is_valid].tolist()
    if drawn.tops is not None:
        result.tops = _tops(drawn.tops, wanted, is_valid)


def _tops(tops: HostTops, wanted: I64, is_valid: np.ndarray) -> TopLogprobs:
    """Positions count the valid rows only, as the result's other columns do."""
    most = tops.token_ids.shape[-1]
    counts = np.clip(wanted, 0, most)
    is_kept = is_valid[counts > 0]
    kept_counts = counts[is_valid]
    positions = np.flatnonzero(kept_counts)
    is_wanted = np.arange(most) < kept_counts[positions][:, None]
    return TopLogprobs(
        positions=positions.tolist(),
        counts=kept_counts[positions].tolist(),
        token_ids=tops.token_ids[is_kept][is_wanted].tolist(),
        logprobs=tops.logprobs[is_kept][is_wanted].tolist(),
    )
