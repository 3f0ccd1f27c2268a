"""What the engine's process and those of its further ranks are told alike."""

import argparse


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    descriptors = "memory, filled and freed descriptors of a ring, as FD,FD,FD"
    parser.add_argument("--inbox", type=_parse_fds, required=True, help=descriptors)
    parser.add_argument("--outbox", type=_parse_fds, required=True, help=descriptors)
    parser.add_argument("--log-level", default="info", help="debug, info, warning or error")
    parser.add_argument("--log-format", choices=["json", "text"], default="json")
    parser.add_argument("--id", default="engine", help="the task executor that the engine is of")


def _parse_fds(text: str) -> tuple[int, ...]:
    return tuple(int(fd) for fd in text.split(","))
