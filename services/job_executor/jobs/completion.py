"""A completion: prompts as they are, texts or token ids."""

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2
from services.job_executor.tokenizer.library import ServedModel
from services.job_executor.tokenizer.pool import WorkPool

PARAM = "prompt"
# Shorter texts are tokenized faster than a thread is woken.
INLINE_CHARACTERS_MAX = 2048


async def prompts(
    completion: jobs_pb2.CompletionInput, model: ServedModel, pool: WorkPool, tokens_max: int
) -> list[list[int]]:
    """The prompts as token ids. Raises InvalidRequest for ids that the model does not know."""
    if not completion.prompts:
        raise InvalidRequest("prompt must hold at least one prompt", param=PARAM)

    def encode_all() -> list[list[int]]:
        return [_token_ids(prompt, model, tokens_max) for prompt in completion.prompts]

    if sum(len(prompt.text) for prompt in completion.prompts) < INLINE_CHARACTERS_MAX:
        return encode_all()
    return await pool.run(encode_all, param=PARAM)


def _token_ids(prompt: jobs_pb2.Prompt, model: ServedModel, tokens_max: int) -> list[int]:
    if prompt.WhichOneof("kind") == "tokens":
        return _known_ids(list(prompt.tokens.ids), model)
    if not prompt.text:
        return []
    return model.tokenizer.encode(prompt.text, add_special_tokens=True, tokens_max=tokens_max)


def _known_ids(ids: list[int], model: ServedModel) -> list[int]:
    highest = max(ids, default=0)
    if highest >= model.vocab_size:
        raise InvalidRequest(
            f"prompt holds token id {highest}; the ids of {model.name} are 0 to "
            f"{model.vocab_size - 1}",
            param=PARAM,
            reason="token_id_out_of_range",
        )
    return ids
