"""How a model is split over ranks: pure arithmetic, so that every rank comes to the same answer.

Tensor parallelism gives each rank of a stage some heads, some of the MLP and some of the
vocabulary; pipeline parallelism gives each stage some layers. Rank 0 is the first of the last
stage, for it draws the tokens; the stages before it have the greater numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from deepflow.core.model_spec import ModelSpec

RANKS_MAX = 64


@dataclass(frozen=True, slots=True)
class Layout:
    tensor: int = 1  # ranks that share every layer
    pipeline: int = 1  # stages, one behind the other

    @classmethod
    def of_settings(cls, settings: Mapping[str, int]) -> "Layout":
        return cls(settings.get("tensor_parallel", 1), settings.get("pipeline_parallel", 1))

    @property
    def size(self) -> int:
        return self.tensor * self.pipeline

    @property
    def places(self) -> list["Place"]:
        return [Place(self, rank) for rank in range(self.size)]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one rank stands."""

    layout: Layout
    rank: int

    @property
    def part(self) -> int:
        """Which of the ranks of its stage."""
        return self.rank % self.layout.tensor

    @property
    def stage(self) -> int:
        return self.layout.pipeline - 1 - self.rank // self.layout.tensor

    @property
    def is_first_stage(self) -> bool:
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.layout.pipeline - 1

    @property
    def peers(self) -> list[int]:
        """The ranks of its stage, itself included, by part."""
        first = self.rank - self.part
        return list(range(first, first + self.layout.tensor))

    @property
    def before(self) -> int:
        """The rank whose hidden states it goes on with."""
        return self.rank + self.layout.tensor

    @property
    def after(self) -> int:
        return self.rank - self.layout.tensor


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank holds of a model."""

    whole: ModelSpec
    place: Place

    @property
    def layers(self) -> range:
        """The last stage has the head beside its layers, so what is left over goes to the first."""
        return split(self.whole.num_layers, self.place.layout.pipeline, self.place.stage)

    @property
    def heads(self) -> range:
        return self._mine(self.whole.num_heads)

    @property
    def kv_heads(self) -> range:
        """Where there are fewer KV heads than ranks, several ranks hold the same one."""
        heads, parts = self.whole.num_kv_heads, self.place.layout.tensor
        if parts <= heads:
            return self._mine(heads)
        first = self.place.part // (parts // heads)
        return range(first, first + 1)

    @property
    def inner(self) -> range:
        return self._mine(self.whole.intermediate_size)

    @property
    def words(self) -> range:
        return self.words_of(self.place.part)

    def words_of(self, part: int) -> range:
        return split(self.whole.vocab_size, self.place.layout.tensor, part)

    @property
    def spec(self) -> ModelSpec:
        """Its share as a model of its own: smaller, and as wide between the layers."""
        layers = self.layers
        return replace(
            self.whole,
            num_heads=len(self.heads),
            num_kv_heads=len(self.kv_heads),
            intermediate_size=len(self.inner),
            num_layers=len(layers),
            layer_windows=self.whole.layer_windows[layers.start : layers.stop],
            vocab_size=len(self.words),
        )

    def _mine(self, count: int) -> range:
        return split(count, self.place.layout.tensor, self.place.part)


def split(count: int, parts: int, index: int) -> range:
    """The part with that index; parts differ by one at most, the larger ones first."""
    each, over = divmod(count, parts)
    start = index * each + min(index, over)
    return range(start, start + each + (index < over))


def check_layout(spec: ModelSpec, layout: Layout) -> None:
    """Raises ValueError that names what would be right."""
    if not _can_split(spec, layout.tensor):
        most = min(spec.num_heads, RANKS_MAX)
        choices = [str(it) for it in range(1, most + 1) if _can_split(spec, it)]
        raise ValueError(
            f"tensor_parallel is {layout.tensor}, but {spec.num_heads} query heads and"
            f" {spec.num_kv_heads} KV heads can be split over {', '.join(choices)} ranks"
        )
    if layout.pipeline > spec.num_layers:
        raise ValueError(
            f"pipeline_parallel is {layout.pipeline}, but must be from 1 to {spec.num_layers},"
            " the number of layers"
        )
    if layout.size > RANKS_MAX:
        raise ValueError(
            f"tensor_parallel times pipeline_parallel is {layout.size}, but an engine has at most"
            f" {RANKS_MAX} ranks"
        )


def _can_split(spec: ModelSpec, parts: int) -> bool:
    """Each rank has whole heads, and the KV heads of all its query heads."""
    kv_heads = spec.num_kv_heads
    are_heads_whole = spec.num_heads % parts == 0
    are_groups_whole = kv_heads % parts == 0 or parts % kv_heads == 0
    return are_heads_whole and are_groups_whole and spec.intermediate_size >= parts
