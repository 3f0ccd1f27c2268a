"""What the kernel allows as the path of a Unix socket."""

import os
from pathlib import Path

from deepflow.local.errors import StackError

# sockaddr_un.sun_path with its closing zero byte.
SOCKET_PATH_BYTES_MAX = 107


def check_socket_path(path: Path) -> None:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise StackError(
            f"{path} is too long for a Unix socket (at most {SOCKET_PATH_BYTES_MAX} bytes):"
            " choose a shorter folder with --data-dir"
        )
