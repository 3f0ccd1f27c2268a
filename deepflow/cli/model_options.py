"""The options that `up` and `deploy` share: how a model is to be held."""

from typing import Annotated

import typer

from deepflow.core.engine_policies import TARGET_MS_MAX
from deepflow.core.parallel import RANKS_MAX

NameOption = Annotated[
    str | None,
    typer.Option(
        show_default="the folder's name or the hub id; demo for the demo model",
        help='What clients put in "model".',
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="cpu; npu or cuda, never run on a card yet; or emulated:NAME, which computes nothing"
        " and takes the time that the named accelerator would: emulated:zero,"
        " emulated:ascend-910b, emulated:h200."
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        show_default="float32 on cpu",
        help="What to compute in: float32; bfloat16 halves the memory, int8 quarters the weights.",
    ),
]
MaxTokensOption = Annotated[
    int,
    typer.Option(
        min=0,
        max=2**31 - 1,
        show_default="as many as the model and the memory allow",
        help="Prompt and answer of one request together.",
    ),
]
KvMemoryOption = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        show_default="derived from what is free",
        help="Memory of the KV cache, as 2GiB or 512MiB.",
    ),
]
PolicyOption = Annotated[
    str,
    typer.Option(
        show_default="priority",
        help="Who runs first: priority, then arrival; or fcfs, arrival alone; or slo, as priority"
        " and with prompts read in pieces so small that answers under way keep flowing.",
    ),
]
TpotOption = Annotated[
    int,
    typer.Option(
        "--tpot-ms",
        min=0,
        max=TARGET_MS_MAX,
        show_default="half as long again as without prompts",
        help="With --policy slo: milliseconds between two tokens of an answer.",
    ),
]
TtftOption = Annotated[
    int,
    typer.Option(
        "--ttft-ms",
        min=0,
        max=TARGET_MS_MAX,
        show_default="10000",
        help="With --policy slo: milliseconds until an answer's first token, after which it may"
        " hold others up a third longer.",
    ),
]
KvDramOption = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        show_default="none",
        help="Host memory that keeps KV which has left the device, as 8GiB.",
    ),
]
KvDiskOption = Annotated[
    str,
    typer.Option(
        metavar="SIZE",
        show_default="none",
        help="Disk that keeps KV which has left the device and --kv-dram, as 50GiB.",
    ),
]
TensorParallelOption = Annotated[
    int,
    typer.Option(
        "--tp",
        min=1,
        max=RANKS_MAX,
        metavar="N",
        help="Split every layer over N ranks, each with a device of its own (one process each on"
        " the CPU).",
    ),
]
PipelineParallelOption = Annotated[
    int,
    typer.Option(
        "--pp",
        min=1,
        max=RANKS_MAX,
        metavar="N",
        help="Divide the layers into N stages, each of --tp ranks, that work on different"
        " sequences at a time.",
    ),
]
ToolFormatOption = Annotated[
    str,
    typer.Option(
        show_default="told from the chat template",
        help="How the model writes tool calls: hermes or llama3.",
    ),
]
