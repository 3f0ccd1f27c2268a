"""What the weights of a model take in a dtype, from its shape alone."""

from deepflow.core.devices import INT8
from deepflow.core.model_spec import DTYPE_BYTES, ModelSpec, count_parameters

# Of each output of a quantised linear: its scale, and the sum of its weights where kernels want it.
OUTPUT_BYTES = 8


def weight_bytes(spec: ModelSpec, dtype: str, float_dtype: str) -> int:
    """`float_dtype` is what stays float where the linears are int8: the table, norms, biases."""
    if dtype != INT8:
        return spec.weight_bytes(dtype)
    linears = spec.num_layers * _layer_weights(spec) + spec.embedding_parameters
    outputs = spec.num_layers * _layer_outputs(spec) + spec.vocab_size
    # A tied table is counted once, and stays float to be looked up: its copy is the head.
    counted = linears - (spec.embedding_parameters if spec.tied_embeddings else 0)
    floats = count_parameters(spec) - counted
    return linears + outputs * OUTPUT_BYTES + floats * DTYPE_BYTES[float_dtype]


def _layer_weights(spec: ModelSpec) -> int:
    attention = spec.hidden_size * 2 * (spec.q_size + spec.kv_size)
    return attention + 3 * spec.hidden_size * spec.intermediate_size


def _layer_outputs(spec: ModelSpec) -> int:
    fused = spec.q_size + 2 * spec.kv_size + 2 * spec.intermediate_size
    return fused + 2 * spec.hidden_size
