"""Runs an encoder over the texts of a step."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from deepflow.core.pooling_spec import PoolingSpec
from services.task_executor.flowserve.layers.segments import Segments


class Encoder(Protocol):
    def forward(self, token_ids: torch.Tensor, segments: Segments) -> torch.Tensor:
        """int64 [tokens], the texts one after the other -> [tokens, hidden]."""


class EncoderExecutor:
    def __init__(self, model: Encoder, pooling: PoolingSpec) -> None:
        self._model = model
        self._pooling = pooling

    def execute(self, texts: Sequence[Sequence[int]]) -> list[bytes | None]:
        """The vector of each text as little-endian fp32; None where it is not finite."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        segments = Segments([len(texts[index]) for index in order])
        token_ids = torch.tensor([token for index in order for token in texts[index]])
        with torch.inference_mode():
            hidden = self._model.forward(token_ids, segments)
            vectors = segments.pool(hidden.float(), self._pooling.pooling)
            if self._pooling.normalizes:
                vectors = F.normalize(vectors, dim=1)
        finite = vectors.isfinite().all(dim=1).tolist()
        rows = vectors.contiguous().numpy().astype("<f4", copy=False)
        result: list[bytes | None] = [None] * len(texts)
        for row, index in enumerate(order):
            result[index] = rows[row].tobytes() if finite[row] else None
        return result

    def close(self) -> None:
        """Nothing outlives the weights, which go with this object."""
