"""`deepflow chat`: talk to a deployed model in the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepflow.cli.common import DataDirOption, fail

if TYPE_CHECKING:
    from deepflow.cli.conversation import Conversation


def chat(
    question: Annotated[
        str | None, typer.Argument(help="Ask this one question and leave; a talk without it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(show_default="the first that is deployed", help="Model to ask.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            show_default="the stack that runs here",
            help="A gateway, such as http://127.0.0.1:8000; for https, SSL_CERT_FILE may"
            " name the CA.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 = always the same.")] = 0,
    api_key: Annotated[
        str,
        typer.Option(
            envvar="DEEPFLOW_API_KEY",
            metavar="KEY",
            show_default="none is needed for the stack that runs here",
            help="Where the gateway asks for one.",
        ),
    ] = "",
    data_dir: DataDirOption = None,
) -> None:
    """Ask a model; the answer streams in as it is made.

    \b
      deepflow chat "What is a task executor?"
      deepflow chat                              a talk; Ctrl-C ends an answer, Ctrl-D the talk
    """
    # Late: the HTTP client is slow to import.
    from deepflow.cli.conversation import ChatError, Conversation

    try:
        base, own_key, trusted = (url, "", None) if url else _running_gateway(data_dir)
        with Conversation(
            base, model, max_tokens, temperature, api_key or own_key, trusted
        ) as conversation:
            if question is not None:
                _stream(conversation, question)
            else:
                _talk(conversation)
    except ChatError as error:
        fail(str(error))


def _running_gateway(data_dir: "DataDirOption") -> tuple[str, str, "Path | None"]:
    """Its address, the key of whoever may read the stack's secrets, and its certificate."""
    from deepflow.access.secrets import cluster_key
    from deepflow.local.client import SupervisorClient
    from deepflow.local.data_dir import DataDir, default_root
    from deepflow.local.errors import StackError
    from deepflow.local.tls_folder import TlsFolder

    try:
        data = DataDir(data_dir or default_root())
        with SupervisorClient(data) as client:
            described = client.ask("describe")
        address, tls = str(described["gateways"][0]), described.get("tls")
        trusted = TlsFolder(Path(tls)).public.certificate if tls else None
        return address, cluster_key(data.read_secrets().cluster_token), trusted
    except StackError as error:
        fail(f"{error}; or name a gateway with --url")


def _talk(conversation: "Conversation") -> None:
    import contextlib
    import sys

    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() gets history and editing from it
        print(f"Talking to {conversation.model}. Ctrl-C ends an answer, Ctrl-D the talk.")
    while True:
        try:
            question = input("\n> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if question:
            _answer_once(conversation, question)


def _answer_once(conversation: "Conversation", question: str) -> None:
    """An answer that fails or is broken off does not end the talk."""
    from deepflow.cli.conversation import ChatError

    try:
        _stream(conversation, question)
    except KeyboardInterrupt:
        print(" [broken off]")
    except ChatError as error:
        print(f"[{error}]")


def _stream(conversation: "Conversation", question: str) -> None:
    for piece in conversation.ask(question):
        print(piece, end="", flush=True)
    print()
