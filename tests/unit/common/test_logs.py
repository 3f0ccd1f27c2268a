"""Log lines as another process writes them."""

import json
import subprocess
import sys
from typing import Any


def lines_of(script: str, *, exit_code: int = 0) -> list[dict[str, Any]]:
    configure = "logs.configure_logging('x', 'x-0', level='info', log_format='json')"
    setup = f"from deepflow import logs\n{configure}\n"
    done = subprocess.run(
        [sys.executable, "-c", setup + script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == exit_code, done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_what_is_always_said_is_in_every_further_line() -> None:
    first, second = lines_of(
        "import logging\nlog = logging.getLogger('a')\nlog.info('one')\n"
        "logs.say_always(deployment='demo')\nlog.info('two', extra={'request_id': 'req-1'})"
    )
    assert (first["service"], first["id"], first["message"]) == ("x", "x-0", "one")
    assert "deployment" not in first
    assert (second["deployment"], second["request_id"]) == ("demo", "req-1")


def test_what_ends_a_process_is_its_last_line() -> None:
    (line,) = lines_of("raise RuntimeError('over and\\nout')", exit_code=1)
    assert line["level"] == "critical" and "over and" in line["message"]
    assert "Traceback" in line["exception"]


def test_a_warning_is_a_line() -> None:
    (line,) = lines_of("import warnings\nwarnings.warn('old')")
    assert line["level"] == "warning" and "old" in line["message"]
