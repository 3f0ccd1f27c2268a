"""The ceiling: Starlette's StreamingResponse that replays recorded events, one a chunk.

Run as `python -m deepflow.bench.bare_server PORT FILE`; FILE holds the events one after another.
"""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from deepflow.bench.sse_client import EVENT_END


def build(events: list[bytes]) -> Starlette:
    async def replay() -> AsyncIterator[bytes]:
        for event in events:
            yield event

    async def chat(request: Request) -> StreamingResponse:
        await request.body()
        return StreamingResponse(replay(), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


def main() -> None:
    port, path = int(sys.argv[1]), Path(sys.argv[2])
    events = [event + EVENT_END for event in path.read_bytes().split(EVENT_END) if event]
    uvicorn.run(
        build(events),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
