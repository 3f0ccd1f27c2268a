"""The prompts of a job of embeddings as token ids; every fault names the input it is about."""

from collections.abc import Iterable

from deepflow.errors import InvalidRequest
from deepflow.v1 import cluster_pb2, jobs_pb2
from services.job_executor.tokenizer.library import ServedModel
from services.job_executor.tokenizer.model_tokenizer import PromptTooLong
from services.job_executor.tokenizer.pool import WorkPool

PARAM = "input"
# Shorter inputs are tokenized faster than a thread is woken.
INLINE_SIZE_MAX = 2048
SLICE_SIZE = 64 * 1024

Named = tuple[jobs_pb2.Prompt, str]  # with the name that errors give it


def check_request(embedding: jobs_pb2.EmbeddingInput, model: ServedModel, prompts_max: int) -> None:
    """All that can be said before a text is looked at. Raises InvalidRequest."""
    facts = model.deployment.facts
    if facts.task == cluster_pb2.MODEL_TASK_GENERATE:
        raise InvalidRequest(
            f"The model `{model.name}` generates text and makes no embeddings.",
            param="model",
            reason="model_not_supported",
        )
    if not 1 <= len(embedding.prompts) <= prompts_max:
        raise InvalidRequest(
            f"{PARAM} holds {len(embedding.prompts)} items; it must hold 1 to {prompts_max}",
            param=PARAM,
        )
    if facts.embedding_size and embedding.dimensions > facts.embedding_size:
        raise InvalidRequest(
            f"dimensions is {embedding.dimensions}; "
            f"the vectors of {model.name} have {facts.embedding_size}",
            param="dimensions",
        )


async def prompts(
    embedding: jobs_pb2.EmbeddingInput, model: ServedModel, pool: WorkPool, tokens_max: int
) -> list[list[int]]:
    """Token ids of every prompt, each of at least one and at most `tokens_max`."""
    params = [PARAM]
    if len(embedding.prompts) > 1:
        params = [f"{PARAM}[{index}]" for index in range(len(embedding.prompts))]
    slices = _slices(zip(embedding.prompts, params, strict=True))
    found: list[list[int]] = []
    for part in slices:

        def encode(part: list[Named] = part) -> list[list[int]]:
            return [_token_ids(prompt, model, tokens_max, param) for prompt, param in part]

        is_short = len(slices) == 1 and sum(_size(prompt) for prompt, _ in part) < INLINE_SIZE_MAX
        found += encode() if is_short else await pool.run(encode, param=PARAM)
    return found


def _slices(prompts: Iterable[Named], slice_size: int = SLICE_SIZE) -> list[list[Named]]:
    """In order, each a piece of work after which somebody else may have his turn."""
    slices: list[list[Named]] = []
    size = slice_size
    for prompt, param in prompts:
        if size >= slice_size:
            slices.append([])
            size = 0
        slices[-1].append((prompt, param))
        size += _size(prompt)
    return slices


def _size(prompt: jobs_pb2.Prompt) -> int:
    """Characters, or token ids."""
    return len(prompt.text) + len(prompt.tokens.ids)


def _token_ids(
    prompt: jobs_pb2.Prompt, model: ServedModel, tokens_max: int, param: str
) -> list[int]:
    if prompt.WhichOneof("kind") == "tokens":
        ids = list(prompt.tokens.ids)
        _check_known(ids, model, param)
    else:
        try:
            ids = model.tokenizer.encode(
                prompt.text, add_special_tokens=True, tokens_max=tokens_max
            )
        except PromptTooLong as error:
            raise _too_long(str(error), tokens_max, param) from error
    if not ids:
        raise InvalidRequest(f"{param} must not be empty", param=param, reason="empty")
    if len(ids) > tokens_max:
        raise _too_long(f"{len(ids)} tokens", tokens_max, param)
    return ids


def _check_known(ids: list[int], model: ServedModel, param: str) -> None:
    highest = max(ids, default=0)
    if highest >= model.vocab_size:
        raise InvalidRequest(
            f"{param} holds token id {highest}; the ids of {model.name} are 0 to "
            f"{model.vocab_size - 1}",
            param=param,
            reason="token_id_out_of_range",
        )


def _too_long(amount: str, tokens_max: int, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"This model's maximum context length is {tokens_max} tokens. However, {param} "
        f"resulted in {amount}. Please reduce its length.",
        param=param,
        reason="context_length_exceeded",
    )
