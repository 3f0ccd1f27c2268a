"""What is wrong with a request. The gateway asks too; the engine trusts nobody."""

from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import Submit


def find_fault(message: Submit, config: EngineConfig) -> str:
    """A sentence for the caller; empty where the request can be run."""
    return (
        _token_fault(message, config) or _length_fault(message, config) or _sampling_fault(message)
    )


def _token_fault(message: Submit, config: EngineConfig) -> str:
    if not message.prompt_token_ids:
        return "the prompt is empty, but must hold at least one token"
    for token_ids in (message.prompt_token_ids, message.resume_token_ids):
        for token in (min(token_ids, default=0), max(token_ids, default=0)):
            if not 0 <= token < config.vocab_size:
                return f"token id {token} is not in the vocabulary of {config.vocab_size}"
    return ""


def _length_fault(message: Submit, config: EngineConfig) -> str:
    prompt, resumed = len(message.prompt_token_ids), len(message.resume_token_ids)
    if prompt + 1 > config.max_tokens:
        return (
            f"the prompt has {prompt} tokens and leaves no room for an answer: "
            f"prompt and answer together may have {config.max_tokens}"
        )
    if prompt + resumed > config.max_tokens:
        return (
            f"prompt and resumed answer have {prompt + resumed} tokens, "
            f"but together may have {config.max_tokens}"
        )
    return ""


def _sampling_fault(message: Submit) -> str:
    sampling = message.sampling
    if sampling.max_tokens < 1:
        return f"max_tokens is {sampling.max_tokens}, but must be 1 or more"
    if not 0 <= sampling.temperature < float("inf"):
        return f"temperature is {sampling.temperature}, but must be 0 or more"
    if not 0 < sampling.top_p <= 1:
        return f"top_p is {sampling.top_p}, but must be above 0 and at most 1"
    return ""
