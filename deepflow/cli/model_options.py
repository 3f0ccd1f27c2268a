"""The options that `up` and `deploy` share: how a model is to be held."""

from typing import Annotated

import typer

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
        help="cpu, or emulated:NAME, which computes nothing and takes the time that the named"
        " accelerator would: emulated:zero, emulated:ascend-910b, emulated:h200."
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        show_default="float32 on cpu",
        help="What to compute in: float32, or bfloat16, which halves the memory.",
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
ToolFormatOption = Annotated[
    str,
    typer.Option(
        show_default="told from the chat template",
        help="How the model writes tool calls: hermes or llama3.",
    ),
]
