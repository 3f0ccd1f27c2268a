"""A part of a stored tensor: some indexes along one axis."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    axis: int  # 0 or 1
    part: range
    whole: int  # indexes that are stored

    def whole_shape(self, part_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the tensor as stored, from that of the part."""
        return (*part_shape[: self.axis], self.whole, *part_shape[self.axis + 1 :])
