"""A client of the supervisor's socket for the command line: one question, one answer."""

import socket
from typing import Any, Self

import msgspec

from deepflow.local.data_dir import DataDir
from deepflow.local.errors import StackError
from deepflow.local.paths import check_socket_path

ANSWER_SECONDS_MAX = 30.0


class NoStack(StackError):
    """No supervisor listens in this folder."""


class SupervisorClient:
    def __init__(self, data: DataDir) -> None:
        """Raises NoStack where nobody listens."""
        check_socket_path(data.socket)
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(ANSWER_SECONDS_MAX)
        try:
            self._connection.connect(str(data.socket))
        except OSError as error:
            self._connection.close()
            raise NoStack(
                f"no stack runs in {data.root}: run 'deepflow up', or name another folder with"
                " --data-dir"
            ) from error
        self._lines = self._connection.makefile("rb")

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Raises StackError with the supervisor's own words where it refuses."""
        try:
            self._connection.sendall(msgspec.json.encode({"op": op, **fields}) + b"\n")
            line = self._lines.readline()
        except OSError as error:
            raise StackError(f"the supervisor does not answer: {error}") from error
        if not line:
            raise StackError("the supervisor closed the connection: the stack is stopping")
        answer: dict[str, Any] = msgspec.json.decode(line)
        if not answer.pop("ok"):
            raise StackError(answer["error"])
        return answer

    def close(self) -> None:
        self._lines.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
