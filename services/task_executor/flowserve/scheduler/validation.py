"""What is wrong with a request. The gateway asks too; the engine trusts nobody."""

from collections.abc import Collection

from deepflow.core.sampling import SamplingParams
from services.task_executor.flowserve.config import EngineConfig
from services.task_executor.flowserve.messages import Submit

ALTERNATIVES_MAX = 20
STOP_TOKENS_MAX = 1024
BIASES_MAX = 1024
BIAS_MAX = 1000.0
# Wider than the API's: what is finite and means something.
_RANGES = (
    ("temperature", 0, 100),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    # Smaller ones are 0 in fp32, or make logits of any size infinite.
    ("repetition_penalty", 0.01, 100),
    ("presence_penalty", -100, 100),
    ("frequency_penalty", -100, 100),
)


def find_fault(message: Submit, config: EngineConfig) -> str:
    """A sentence for the caller; empty where the request can be run."""
    return (
        _token_fault(message, config)
        or _length_fault(message, config)
        or _sampling_fault(message.sampling, config)
    )


def _token_fault(message: Submit, config: EngineConfig) -> str:
    if message.embed:
        return "this model generates text and makes no embeddings"
    if not message.prompt_token_ids:
        return "the prompt is empty, but must hold at least one token"
    for token_ids in (message.prompt_token_ids, message.resume_token_ids):
        for token in (min(token_ids, default=0), max(token_ids, default=0)):
            if not 0 <= token < config.vocab_size:
                return f"token id {token} is not in the vocabulary of {config.vocab_size}"
    return ""


def _length_fault(message: Submit, config: EngineConfig) -> str:
    prompt, resumed = len(message.prompt_token_ids), len(message.resume_token_ids)
    if prompt + min(1, message.sampling.max_tokens) > config.max_tokens:
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


def _sampling_fault(sampling: SamplingParams, config: EngineConfig) -> str:
    return (
        _range_fault(sampling)
        or _count_fault(sampling, config)
        or _ids_fault("stop_token_ids", sampling.stop_token_ids, STOP_TOKENS_MAX, config)
        or _ids_fault("logit_bias", sampling.logit_bias, BIASES_MAX, config)
        or _ends_fault(sampling, config)
    )


def _range_fault(sampling: SamplingParams) -> str:
    for name, least, most in _RANGES:
        value = getattr(sampling, name)
        if not least <= value <= most:  # so is a NaN caught
            return f"{name} is {value:g}, but must be from {least:g} to {most:g}"
    if sampling.top_p == 0:
        return "top_p is 0, but must be above 0 and at most 1"
    for token, bias in sampling.logit_bias.items():
        if not -BIAS_MAX <= bias <= BIAS_MAX:
            return f"logit_bias of token {token} is {bias}, but must be within {BIAS_MAX:g} of 0"
    return ""


def _count_fault(sampling: SamplingParams, config: EngineConfig) -> str:
    if sampling.max_tokens < 0:
        return f"max_tokens is {sampling.max_tokens}, but must be 0 or more"
    if not 0 <= sampling.min_tokens <= sampling.max_tokens:
        return f"min_tokens is {sampling.min_tokens}, but must be from 0 to max_tokens"
    if sampling.top_k < 0:
        return f"top_k is {sampling.top_k}, but must be 0 (all) or more"
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(sampling, name)
        if count is None:
            continue
        if not config.has_logits:
            return f"{name} is asked for, but an emulated device computes no log probabilities"
        if not 0 <= count <= ALTERNATIVES_MAX:
            return f"{name} is {count}, but must be from 0 to {ALTERNATIVES_MAX}"
    return ""


def _ids_fault(name: str, ids: Collection[int], count_max: int, config: EngineConfig) -> str:
    if len(ids) > count_max:
        return f"{name} names {len(ids)} tokens, but may name {count_max}"
    for token in ids:
        if not 0 <= token < config.vocab_size:
            return f"{name} holds {token}, which is not in the vocabulary of {config.vocab_size}"
    return ""


def _ends_fault(sampling: SamplingParams, config: EngineConfig) -> str:
    eos = () if sampling.ignore_eos else config.eos_token_ids
    if sampling.min_tokens and len({*eos, *sampling.stop_token_ids}) >= config.vocab_size:
        return "min_tokens leaves no token to draw: stop_token_ids and EOS are the whole vocabulary"
    return ""
