"""How a model is put together on a rank that holds a share of it, and on one that holds it all.

The decoder itself knows nothing of ranks: what it calls sums, gathers and receives for it.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

Linear = Callable[[torch.Tensor], torch.Tensor]
Entry = Callable[[torch.Tensor], torch.Tensor]  # token ids [tokens] -> hidden [tokens, hidden]


class Split(Protocol):
    first_layer: int  # index of the first layer held, in the whole model
    has_table: bool
    has_head: bool
    adds_biases: bool  # of linears whose outputs are summed: one rank of them all does

    def look_up(self, table: torch.Tensor) -> Entry:
        """Through this part of the table: [words, hidden]."""

    def receive(self) -> Entry:
        """From the stage before, where there is no table."""

    def summed(self, linear: Linear) -> Linear:
        """Of a linear over some of the inputs."""

    def gathered(self, head: Linear) -> Linear:
        """Of a linear with some of the outputs."""


class Whole:
    """One rank holds the model."""

    first_layer = 0
    has_table = has_head = adds_biases = True

    def look_up(self, table: torch.Tensor) -> Entry:
        return lambda token_ids: F.embedding(token_ids, table)

    def receive(self) -> Entry:
        raise AssertionError("there is no stage before")

    def summed(self, linear: Linear) -> Linear:
        return linear

    def gathered(self, head: Linear) -> Linear:
        return head
