"""Linear layers on an NPU: as they are, or W8A8 with a scale per token and per output channel."""

import torch
import torch_npu

from services.task_executor.devices.npu.limits import QUANTISED_WIDTH_MAX

_INT8_MAX = 127


class Int8Linear:
    """Outputs over a long vocabulary are more than one call takes: they come in even parts."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        count = -(-len(weight) // QUANTISED_WIDTH_MAX)
        self._parts = [quantised(part) for part in weight.tensor_split(count)]
        self._biases = [None] * count if bias is None else bias.tensor_split(count)
        self._dtype = weight.dtype

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        quantised_inputs, token_scales = torch_npu.npu_dynamic_quant(inputs)
        outputs = [
            torch_npu.npu_quant_matmul(
                quantised_inputs,
                weight,
                scales,
                pertoken_scale=token_scales,
                bias=bias,
                output_dtype=self._dtype,  # the default is int8
            )
            for (weight, scales), bias in zip(self._parts, self._biases, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def can_quantise(weight: torch.Tensor) -> bool:
    """Inputs cannot be cut into parts: their sums would be rounded apart."""
    return weight.shape[1] <= QUANTISED_WIDTH_MAX


def quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[out, in] -> int8 [in, out], and fp32 [out]: what each output channel is multiplied by."""
    exact = weight.float()
    scales = exact.abs().amax(dim=1) / _INT8_MAX
    scales = torch.where(scales > 0, scales, 1.0)  # a row of zeros
    whole = (exact / scales[:, None]).round().clamp(-_INT8_MAX, _INT8_MAX).to(torch.int8)
    return whole.t().contiguous(), scales
