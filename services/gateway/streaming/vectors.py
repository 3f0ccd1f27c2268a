"""The answer to a request for embeddings: each vector is worded when it comes."""

import base64
import sys
from array import array

import msgspec

from deepflow.v1 import jobs_pb2 as jobs

_encode = msgspec.json.Encoder().encode


class VectorList:
    def __init__(self, count: int, *, as_base64: bool) -> None:
        self._items = [b""] * count
        self._word = _base64 if as_base64 else _floats
        self.prompt_tokens = 0

    def add(self, embedding: jobs.JobEmbedding) -> None:
        index = embedding.index
        self._items[index] = b'{"object":"embedding","index":%d,"embedding":%b}' % (
            index,
            self._word(embedding.values),
        )
        self.prompt_tokens += embedding.prompt_tokens

    @property
    def is_complete(self) -> bool:
        return all(self._items)

    def document(self, model: str) -> bytes:
        """JSON, put together from what is JSON already."""
        usage = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}
        return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (
            b",".join(self._items),
            _encode(model),
            _encode(usage),
        )


def _base64(values: bytes) -> bytes:
    return b'"%b"' % base64.b64encode(values)


def _floats(values: bytes) -> bytes:
    numbers = array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return _encode(numbers.tolist())
