"""Every device that a deployment may name, and what each computes in, the best dtype first.

Shared by who refuses a wrong name at once and who opens the device.
"""

# Weights of one byte, with a scale an output channel; activations get one a token while they pass.
INT8 = "int8"

# bf16 halves the memory, and is several times slower on CPUs without bf16 arithmetic. fp16 is
# left out on purpose: its range is too small for the activations of many models.
CPU_DTYPES = ("float32", "bfloat16", INT8)
# Its attention kernels know no fp32.
NPU_DTYPES = ("bfloat16", INT8)
CUDA_DTYPES = ("bfloat16", "float32", INT8)
# Nothing is computed there: the dtype only decides how long it seems to take.
EMULATED_DTYPES = ("bfloat16", "float16", "float32")

DEVICE_DTYPES = {
    "cpu": CPU_DTYPES,
    "npu": NPU_DTYPES,
    "cuda": CUDA_DTYPES,
    "emulated:zero": EMULATED_DTYPES,
    "emulated:ascend-910b": EMULATED_DTYPES,
    "emulated:h200": EMULATED_DTYPES,
}
