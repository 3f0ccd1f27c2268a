"""`deepflow certificates`: what TLS needs."""

from pathlib import Path
from typing import Annotated

import typer

from deepflow.cli.common import EXIT_BAD_OPTION, fail

app = typer.Typer(help="Certificates for TLS.", no_args_is_help=True)


@app.command()
def create(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Made where it is missing; nothing in it is overwritten."
        ),
    ],
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="How long all of them are valid.")
    ] = 365,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name or address that clients find the gateways under, besides localhost; may be"
            " repeated.",
        ),
    ] = None,
) -> None:
    """Make a CA of your own and the certificates that it signs.

    \b
      ca.pem                           for clients: curl --cacert, SSL_CERT_FILE
      gateway/certificate.pem, key.pem HTTPS of the gateways; yours may take its place
      service.pem, service-key.pem     mutual TLS of the services and of commands
      ca-key.pem                       signs; nothing that runs needs it

    \b
      deepflow certificates create ./tls --host llm.example.com
      deepflow up --tls ./tls
    """
    # Late: --help needs none of this.
    from deepflow.local.certificates import create_certificates
    from deepflow.local.errors import StackError
    from deepflow.local.tls_folder import TlsFolder

    tls = TlsFolder(folder.expanduser().absolute())
    try:
        create_certificates(tls, days, host or ())
    except ValueError as error:
        fail(f"--host {error}", EXIT_BAD_OPTION)
    except StackError as error:
        fail(str(error))
    print(f"{tls.root} holds a CA and its certificates, valid for {days} days")
    print(f"Use them: deepflow up --tls {folder}")
