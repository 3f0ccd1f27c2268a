"""What the executor asks of a model."""

from typing import Protocol

import torch

from services.task_executor.devices.base import AttentionStep, LayerKv


class Model(Protocol):
    def forward(
        self,
        token_ids: torch.Tensor,  # int64 [tokens], all entries of the plan one after the other
        positions: torch.Tensor,  # int64 [tokens]
        attention: AttentionStep,
        kv: list[LayerKv],
    ) -> torch.Tensor:
        """Write the tokens' KV and return what the last layer says of each: [tokens, hidden]."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 [rows, vocab] of some of those rows; only a few, for a vocabulary is long."""
