"""Exact products of int8 rows with int8 weights, by whichever way this CPU can.

None is exact everywhere: without VNNI the pairs of products that a kernel adds in 16 bits overflow
where both factors use the whole range, and with AMX a shifted input is put right in floats. So
each way is tried once in a process, on the rows and weights that overflow first.
"""

from dataclasses import dataclass
from functools import cache
from time import thread_time

import torch
import torch.nn.functional as F

# What AMX wants: its tiles hold 16 rows, and oneDNN leaves smaller products to a reference loop.
TILE_ROWS = 16
TILE_COLUMNS = 64

PROBE_OUTPUTS = 64
PROBE_INPUTS = 1152  # 127 * 127 times this is more than a float can count
PROBE_ROWS = (1, 3, 33)
PROBE_REPEATS = 5
PROBE_SECONDS = 0.005  # spent on one kernel, short of its first run
# Which oneDNN's reference loops exceed a hundredfold, and no noise does.
SLOWER_MAX = 30


@dataclass(frozen=True, slots=True)
class PackedWeight:
    data: torch.Tensor  # as the kernel wants it
    scales: torch.Tensor  # of each output
    zero_points: torch.Tensor  # all 0: weights are symmetric
    outputs: int


@dataclass(frozen=True, slots=True)
class Int8Kernel:
    """[rows, in] of int8 in -levels .. levels, times a weight [out, in], times the scales."""

    name: str
    levels: int = 127
    shift: int = 0  # added to every input, which is unsigned then
    is_tiled: bool = False
    input_multiple: int = 1
    is_packed: bool = True  # else torch's plain product of integers

    def pack(self, weight: torch.Tensor, scales: torch.Tensor) -> PackedWeight:
        """weight: int8 [out, in] in -127 .. 127."""
        outputs, inputs = weight.shape
        more_inputs = -inputs % self.input_multiple
        more_outputs = -outputs % TILE_COLUMNS if self.is_tiled else 0
        if more_inputs or more_outputs:
            weight = F.pad(weight, (0, more_inputs, 0, more_outputs))
            scales = F.pad(scales, (0, more_outputs))
        zero_points = torch.zeros(len(scales), dtype=torch.int64)
        if self.is_packed:
            weight = torch.ops.onednn.qlinear_prepack(weight, None)
        return PackedWeight(weight, scales, zero_points, outputs)

    def multiply(self, rows: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """Floats [rows, out] of which no bit depends on the other rows; not always contiguous."""
        count, inputs = rows.shape
        more_inputs = -inputs % self.input_multiple
        more_rows = max(0, TILE_ROWS - count) if self.is_tiled else 0
        if more_inputs or more_rows:
            rows = F.pad(rows, (0, more_inputs, 0, more_rows))
        if not self.is_packed:
            return torch._int_mm(rows, weight.data.t()).float().mul_(weight.scales)
        if self.shift:  # wraps around, which is what reads -128 .. 127 as 0 .. 255
            rows = rows.view(torch.uint8).add(self.shift)
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, self.shift, weight.data, weight.scales, weight.zero_points,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product[:count, : weight.outputs]


KERNELS = (
    Int8Kernel("tiles of signed rows", is_tiled=True, input_multiple=TILE_COLUMNS),  # AMX
    Int8Kernel("unsigned rows", shift=128),  # VNNI
    # Where oneDNN has nothing to offer; torch mistakes the strides of a single input.
    Int8Kernel("plain integers", is_packed=False, input_multiple=2),
    Int8Kernel("narrow rows", levels=63, shift=64),  # 2 * 127 * 127 fits 16 bits
)


class Int8Unsupported(ValueError):
    """No kernel is right on this CPU."""


@cache
def choose_kernel() -> Int8Kernel:
    """The first that is exact here and not hopelessly slow; always the same one on one machine.

    One thread measures, in its own CPU time: on a busy machine any other time is that of whoever
    else is running, and a kernel may not be passed over for that.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = {it: taken for it in KERNELS if (taken := _seconds(it)) is not None}
        for kernel, taken in seconds.items():
            if taken <= SLOWER_MAX * min(seconds.values()) and is_exact(kernel):
                return kernel
    finally:
        torch.set_num_threads(threads)
    raise Int8Unsupported("dtype int8 cannot be computed exactly on this CPU; choose float32")


def is_exact(kernel: Int8Kernel) -> bool:
    weight, rows = _hardest(kernel.levels)
    # Rounded once, from a sum that is exact in fp64.
    expected = (rows.double() @ weight.double().t()).float()
    packed = kernel.pack(weight, torch.ones(len(weight)))
    products = [kernel.multiply(rows[:count], packed) for count in PROBE_ROWS]
    return all(torch.equal(product, expected[: len(product)]) for product in products)


def _seconds(kernel: Int8Kernel) -> float | None:
    """The shortest of a few runs; None where torch was built without it."""
    weight, rows = _hardest(kernel.levels)
    taken: list[float] = []
    try:
        packed = kernel.pack(weight, torch.ones(len(weight)))
        while len(taken) < PROBE_REPEATS and sum(taken[1:]) < PROBE_SECONDS:
            began = thread_time()
            kernel.multiply(rows[:1], packed)
            taken.append(thread_time() - began)
    except RuntimeError:
        return None
    return min(taken)


def _hardest(levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both factors at their ends, of like and of unlike signs, and sums that no float holds."""
    draw = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (PROBE_OUTPUTS, PROBE_INPUTS), generator=draw)
    rows = torch.randint(-levels, levels + 1, (max(PROBE_ROWS), PROBE_INPUTS), generator=draw)
    weight[:3] = torch.tensor([[127], [-127], [126]])
    rows[:3] = torch.tensor([[levels], [-levels], [levels - 1]])
    return weight.to(torch.int8), rows.to(torch.int8)
