"""What the documentation says that each NPU operation computes, in plain torch on the CPU.

Arguments come bound by the schema that torch_npu registers. Every documented restriction is an
assertion here: the stubs would accept anything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

Reference = Callable[..., Any]
Tensor = torch.Tensor

REFERENCES: dict[str, Reference] = {}
# Tests compare in fp32, which the kernels of these operations do not know.
SIXTEEN_BITS = (torch.float16, torch.bfloat16)
DTYPES_BY_NUMBER = {5: torch.float16, 15: torch.bfloat16}
WIDTH_MAX = 65_535


def reference(name: str) -> Callable[[Reference], Reference]:
    def add(function: Reference) -> Reference:
        REFERENCES[f"npu::{name}"] = function
        return function

    return add


@reference("npu_rms_norm")
def rms_norm(input: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    assert 2 <= input.dim() <= 8 and gamma.dtype == input.dtype
    assert gamma.shape == input.shape[input.dim() - gamma.dim() :]
    exact = input.float()
    scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + epsilon)
    return (exact * scale * gamma.float()).to(input.dtype), scale


@reference("npu_add_rms_norm")
def add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    assert x1.shape == x2.shape and x1.dtype == x2.dtype
    total = x1 + x2
    normed, scale = rms_norm(total, gamma, epsilon)
    return normed, scale, total


@reference("npu_swiglu")
def swiglu(input: Tensor, dim: int) -> Tensor:
    gate, up = input.float().chunk(2, dim)
    return (F.silu(gate) * up).to(input.dtype)


@reference("npu_rotary_mul")
def rotary_mul(
    input: Tensor, r1: Tensor, r2: Tensor, rotary_mode: str, rotate: Tensor | None
) -> Tensor:
    assert rotary_mode == "half" and rotate is None
    assert input.dim() == r1.dim() == r2.dim() == 4
    batch, tokens, heads, width = input.shape
    assert width < 896 and width % 2 == 0 and batch < 1000 and heads < 1000
    assert r1.shape == r2.shape == (1, tokens, 1, width)
    assert input.dtype == r1.dtype == r2.dtype
    assert not bool((r1.abs() > 1).any() or (r2.abs() > 1).any())
    first, second = input.chunk(2, -1)
    return input * r1 + torch.cat((-second, first), -1) * r2


@reference("npu_scatter_pa_kv_cache")
def scatter_pa_kv_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    compress_lens: Tensor | None,
    compress_seq_offsets: Tensor | None,
    seq_lens: Tensor | None,
    cache_mode: str,
) -> None:
    assert cache_mode == "Norm"
    assert compress_lens is None and compress_seq_offsets is None and seq_lens is None
    assert slot_mapping.dtype in (torch.int32, torch.int64) and slot_mapping.dim() == 1
    slots = slot_mapping.long()
    assert len(set(slots.tolist())) == len(slots), "two tokens go to one slot"
    for new, cache in ((key, key_cache), (value, value_cache)):
        assert new.dim() == 3 and cache.dim() == 4 and new.is_contiguous()
        assert new.dtype == cache.dtype and new.shape[1:] == cache.shape[2:]
        flat = cache.view(-1, *cache.shape[2:])
        assert int(slots.min()) >= 0 and int(slots.max()) < len(flat)
        flat[slots] = new


@reference("npu_fused_infer_attention_score")
def fused_infer_attention_score(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    atten_mask: Tensor,
    actual_seq_lengths: Sequence[int],
    actual_seq_lengths_kv: Sequence[int],
    block_table: Tensor,
    num_heads: int,
    num_key_value_heads: int,
    scale: float,
    input_layout: str,
    sparse_mode: int,
    block_size: int,
    out: Sequence[Tensor] | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    _check_lengths(query, block_table, actual_seq_lengths, actual_seq_lengths_kv)
    _check_mask(atten_mask, sparse_mode, input_layout)
    assert others["pre_tokens"] == others["next_tokens"] == 2**31 - 1  # no band
    assert not others["softmax_lse_flag"] and others["query_rope"] is None
    heads, width = query.shape[1:]
    assert query.dim() == 3 and heads == num_heads and heads % num_key_value_heads == 0
    assert heads // num_key_value_heads <= 64 and width in (64, 128, 192)
    for cache in (key, value):
        assert cache.is_contiguous() and cache.dtype == query.dtype and cache.numel() < 2**31
        assert cache.shape[1:] == (block_size, num_key_value_heads * width)
        assert cache.shape[2] <= WIDTH_MAX
    assert block_size == 128 and query.is_contiguous()
    output = torch.empty_like(query)
    first = 0
    for entry, end in enumerate(actual_seq_lengths):
        length = actual_seq_lengths_kv[entry]
        blocks = block_table[entry, : -(-length // block_size)].long()
        output[first:end] = _attend(
            query[first:end], key[blocks], value[blocks], length, num_key_value_heads, scale
        )
        first = end
    if out is not None:
        out[0].copy_(output)
    return output, torch.zeros(1)


def _check_lengths(
    query: Tensor, block_table: Tensor, ends: Sequence[int], lengths: Sequence[int]
) -> None:
    assert block_table.dtype == torch.int32 and block_table.dim() == 2
    assert ends[-1] == len(query) <= 65_536
    assert len(ends) == len(lengths) == len(block_table)
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert all(0 < count <= length for count, length in zip(counts, lengths, strict=True))


def _check_mask(mask: Tensor, sparse_mode: int, layout: str) -> None:
    assert layout == "TND" and sparse_mode == 3
    assert mask.shape == (2048, 2048) and mask.dtype in (torch.int8, torch.uint8, torch.bool)
    assert torch.equal(mask.bool(), torch.ones(2048, 2048).triu(diagonal=1).bool())


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, length: int, kv_heads: int, scale: float
) -> Tensor:
    """Bottom-right causal. Whole blocks are read, as tiles would be: what is masked still counts
    where it is not a number."""
    count, heads, width = queries.shape
    keys, values = (
        part.reshape(-1, kv_heads, width).float().repeat_interleave(heads // kv_heads, 1)
        for part in (keys, values)
    )
    scores = torch.einsum("qhd,khd->hqk", queries.float(), keys) * scale
    last_seen = torch.arange(count)[:, None] + length - count
    is_masked = torch.arange(len(keys)) > last_seen
    shares = scores.masked_fill(is_masked, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", shares, values).to(queries.dtype)


@reference("_npu_fused_infer_attention_score_get_max_workspace")
def get_max_workspace(**bound: Any) -> Tensor:
    return torch.empty(512, dtype=torch.uint8)


@reference("_npu_fused_infer_attention_score_infer_output")
def infer_output(query: Tensor, value: Tensor, **bound: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), torch.empty(1)


@reference("npu_dynamic_quant")
def dynamic_quant(
    input: Tensor,
    smooth_scales: Tensor | None,
    group_index: Tensor | None,
    dst_type: int | None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    assert input.dtype in SIXTEEN_BITS and input.dim() > 1
    assert smooth_scales is None and group_index is None and dst_type is None
    exact = input.float()
    scales = exact.abs().amax(-1) / 127
    whole = (exact / scales.clamp(min=1e-30)[..., None]).round().clamp(-128, 127)
    return whole.to(torch.int8), scales


@reference("npu_quant_matmul")
def quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None,
    pertoken_scale: Tensor,
    bias: Tensor | None,
    output_dtype: int,
    **others: Any,
) -> Tensor:
    dtype = DTYPES_BY_NUMBER[output_dtype]
    assert x1.dtype == x2.dtype == torch.int8 and offset is None
    assert x1.shape[-1] == x2.shape[0] <= WIDTH_MAX and x2.shape[1] <= WIDTH_MAX
    assert scale.shape == (x2.shape[1],) and scale.dtype == torch.float32
    assert pertoken_scale.shape == (len(x1),) and pertoken_scale.dtype == torch.float32
    output = (x1.double() @ x2.double()).float() * scale * pertoken_scale[:, None]
    if bias is not None:
        assert bias.shape == scale.shape and bias.dtype in (dtype, torch.float32)
        output = output + bias.float()
    return output.to(dtype)
