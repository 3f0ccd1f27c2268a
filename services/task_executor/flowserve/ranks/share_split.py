"""The Split of a rank that holds a share."""

import torch
import torch.nn.functional as F

from deepflow.core.parallel import Share
from services.task_executor.flowserve.models.split import Entry, Linear
from services.task_executor.flowserve.ranks.collectives import Collectives


class ShareSplit:
    def __init__(self, share: Share, collectives: Collectives) -> None:
        place = share.place
        self.first_layer = share.layers.start
        self.has_table = place.is_first_stage
        self.has_head = place.is_last_stage
        self.adds_biases = place.part == 0
        self._share = share
        self._collectives = collectives
        self._is_alone = place.layout.tensor == 1  # in its stage

    def look_up(self, table: torch.Tensor) -> Entry:
        if self._is_alone:
            return lambda token_ids: F.embedding(token_ids, table)
        words = self._share.words

        def enter(token_ids: torch.Tensor) -> torch.Tensor:
            is_others = (token_ids < words.start) | (token_ids >= words.stop)
            places = (token_ids - words.start).masked_fill(is_others, 0)
            own = F.embedding(places, table).masked_fill(is_others[:, None], 0)
            return self._collectives.sum(own)  # of one that knows the word, and zeros

        return enter

    def receive(self) -> Entry:
        width = self._share.whole.hidden_size
        return lambda token_ids: self._collectives.receive(len(token_ids), width)

    def summed(self, linear: Linear) -> Linear:
        if self._is_alone:
            return linear
        return lambda inputs: self._collectives.sum(linear(inputs))

    def gathered(self, head: Linear) -> Linear:
        if self._is_alone:
            return head
        parts = self._share.place.layout.tensor
        widths = [len(self._share.words_of(part)) for part in range(parts)]
        return lambda hidden: self._collectives.gather(head(hidden), widths)
