"""Shows a deployment on its way: a line that moves, a line a change, or events."""

import json
import sys
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape

from deepflow.cli.models_table import kv_words, memory_words
from deepflow.cli.reporters import write_line
from deepflow.deployments import cut_words


class DeployReporter(Protocol):
    def progress(self, detail: str) -> None: ...

    def accepted(self, name: str) -> None: ...

    def scaled(self, name: str, count: int, where: list[str]) -> None:
        """`where`: their addresses, for those that clients ask."""

    def ready(self, row: dict[str, Any]) -> None: ...

    def failed(self, message: str) -> None: ...

    def close(self) -> None: ...


def deploy_reporter_for(as_json: bool) -> DeployReporter:
    if as_json:
        return JsonDeployReporter()
    return TerminalDeployReporter() if sys.stdout.isatty() else PlainDeployReporter()


class PlainDeployReporter:
    def __init__(self) -> None:
        self._told = ""

    def progress(self, detail: str) -> None:
        if detail != self._told:
            self._told = detail
            self._show(detail)

    def accepted(self, name: str) -> None:
        write_line(f"{name} is deployed; 'deepflow models' shows when it is ready")

    def scaled(self, name: str, count: int, where: list[str]) -> None:
        self.close()
        write_line(f"{name}: {count}" + (f" ({', '.join(where)})" if where else ""))

    def ready(self, row: dict[str, Any]) -> None:
        self.close()
        memory = ", ".join(words for words in (memory_words(row), kv_words(row)) if words)
        write_line(
            f"{row['name']} is ready: {row['ready']} of {row['replicas']} replicas, {memory}"
        )
        if words := cut_words(row):
            write_line(f"  {words}")

    def failed(self, message: str) -> None:
        self.close()

    def close(self) -> None:
        """The screen is free again."""

    def _show(self, detail: str) -> None:
        write_line(f"  {detail}")


class TerminalDeployReporter(PlainDeployReporter):
    def __init__(self) -> None:
        super().__init__()
        self._status = Console().status("deploy")
        self._status.start()

    def accepted(self, name: str) -> None:
        self.close()
        super().accepted(name)

    def close(self) -> None:
        self._status.stop()

    def _show(self, detail: str) -> None:
        self._status.update(f"deploy [dim]{escape(detail[:100])}[/dim]")


class JsonDeployReporter(PlainDeployReporter):
    def accepted(self, name: str) -> None:
        _event("accepted", name=name)

    def scaled(self, name: str, count: int, where: list[str]) -> None:
        _event("ready", name=name, count=count, **({"addresses": where} if where else {}))

    def ready(self, row: dict[str, Any]) -> None:
        _event("ready", **row)

    def failed(self, message: str) -> None:
        _event("failed", message=message)

    def _show(self, detail: str) -> None:
        _event("progress", detail=detail)


def _event(event: str, **fields: Any) -> None:
    write_line(json.dumps({"event": event, **fields}))
