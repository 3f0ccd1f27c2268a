"""The prompt of one choice, on its way back to the client that asked for it."""

from deepflow.errors import Internal, InvalidRequest
from deepflow.rpc import MESSAGE_BYTES_MAX
from deepflow.v1 import jobs_pb2, tasks_pb2
from services.job_executor.tokenizer.token_bytes import TokenBytes

# Leaves room for the rest of the message that carries it.
PROMPT_BYTES_MAX = MESSAGE_BYTES_MAX // 2


class ReturnedPrompt:
    """Gathers the logprobs of the prompt's tokens, each position once and in order."""

    __slots__ = ("_columns", "_prompt", "_text", "_token_bytes", "_wants_logprobs")

    def __init__(
        self, prompt: list[int], text: str, token_bytes: TokenBytes, *, wants_logprobs: bool
    ) -> None:
        self._prompt = prompt
        self._text = text
        self._token_bytes = token_bytes
        self._wants_logprobs = wants_logprobs
        self._columns = jobs_pb2.ChoicePrompt()

    @property
    def is_complete(self) -> bool:
        return not self._wants_logprobs or self._next_position == len(self._prompt)

    @property
    def _next_position(self) -> int:
        return len(self._columns.logprobs) + 1

    def reset(self) -> None:
        """The task begins anew: what the earlier one told counts no more."""
        self._columns = jobs_pb2.ChoicePrompt()

    def add(self, told: tasks_pb2.PromptLogprobs) -> None:
        """Raises Internal for columns that do not go on where the last ones ended."""
        if not self._wants_logprobs:
            return
        count = len(told.logprobs)
        _check_lengths(told, count)
        due = self._next_position
        if told.first_position != due or due + count > len(self._prompt):
            raise Internal(
                f"logprobs of prompt tokens {told.first_position} to "
                f"{told.first_position + count - 1} came where token {due} "
                f"of {len(self._prompt)} was due"
            )
        columns = self._columns
        columns.logprobs.extend(told.logprobs)
        columns.ranks.extend(told.ranks)
        columns.top_counts.extend([len(told.top_token_ids) // count] * count if count else ())
        columns.top_token_ids.extend(told.top_token_ids)
        columns.top_token_bytes.extend(map(self._token_bytes.__getitem__, told.top_token_ids))
        columns.top_logprobs.extend(told.top_logprobs)

    def to_proto(self, handle: int, choice_index: int) -> jobs_pb2.ChoicePrompt:
        """Raises Internal where columns are missing, InvalidRequest where they are too many."""
        if not self.is_complete:
            raise Internal(
                f"the first token came before the logprobs of prompt token {self._next_position}"
            )
        message = self._columns
        message.handle, message.choice_index = handle, choice_index
        message.text = self._text
        message.token_ids.extend(self._prompt)
        message.token_bytes.extend(map(self._token_bytes.__getitem__, self._prompt))
        if message.ByteSize() > PROMPT_BYTES_MAX:
            raise InvalidRequest(
                f"the prompt with its logprobs has {message.ByteSize()} bytes; at most "
                f"{PROMPT_BYTES_MAX} can be sent: ask for fewer alternatives",
                param="prompt_logprobs" if self._wants_logprobs else "prompt",
            )
        return message


def _check_lengths(told: tasks_pb2.PromptLogprobs, count: int) -> None:
    num_tops = len(told.top_token_ids)
    is_even = num_tops % count == 0 if count else num_tops == 0
    if len(told.ranks) != count or len(told.top_logprobs) != num_tops or not is_even:
        raise Internal("columns of prompt logprobs differ in length")
