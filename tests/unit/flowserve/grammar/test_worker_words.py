"""What a library prints beside its answers becomes lines of our log."""

import logging
import subprocess
import sys

import pytest

from services.task_executor.flowserve.grammar import proving

PANIC = "thread 'main' panicked at src/lib.rs:1:"


def log_of(script: str, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    command = [sys.executable, "-c", f"import sys\n{script}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        proving._log_lines(process.stderr, process.pid)
        process.wait()
    return [record for record in caplog.records if record.name == proving.__name__]


def test_each_line_is_one_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    records = log_of(f'sys.stderr.write("{PANIC}\\n\\nsecond\\n")', caplog)
    assert [record.getMessage().partition(": ")[2] for record in records] == [PANIC, "second"]
    assert all(vars(record)["worker_pid"] > 0 for record in records)


def test_a_line_without_an_end_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    length = 3 * proving.LINE_BYTES_MAX
    records = log_of(f'sys.stderr.buffer.write(b"\\xff" * {length})', caplog)
    assert len(records) == 3
    assert all(len(record.getMessage()) < proving.LINE_BYTES_MAX + 100 for record in records)
