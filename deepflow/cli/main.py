"""The entry point of `deepflow`. Light: what a verb needs is imported when it runs."""

import sys

import typer

from deepflow.cli import (
    bench,
    certificates,
    chat,
    deploy,
    doctor,
    down,
    keys,
    logs,
    models,
    scale,
    status,
    undeploy,
    up,
    usage,
    version,
)

app = typer.Typer(
    help="DeepFlow serves large language models from a mesh of small processes.\n\n"
    "Begin with [bold]deepflow up[/bold]: it starts the whole mesh on this machine with the"
    " packaged demo model. Then, in another terminal, [bold]deepflow chat[/bold].",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up.up)
app.command()(down.down)
app.command()(status.status)
app.command()(deploy.deploy)
app.command()(scale.scale)
app.command()(undeploy.undeploy)
app.command()(models.models)
app.command()(chat.chat)
app.add_typer(keys.app, name="keys")
app.add_typer(certificates.app, name="certificates")
app.command()(usage.usage)
app.command()(logs.logs)
app.command()(doctor.doctor)
app.command()(version.version)
app.add_typer(bench.app, name="bench")


def main() -> None:
    try:
        app()
    except BrokenPipeError:  # the reader of a pipe left, as `deepflow logs | head` does
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
