"""What a prompt is thought to cost before anybody has counted its tokens."""

from collections.abc import Iterable

from deepflow.v1 import jobs_pb2 as jobs

# Of common languages and tokenizers; the exact number replaces it in the end.
BYTES_PER_TOKEN = 4
MESSAGE_TOKENS = 4


def prompt_estimate(work: jobs.ChatInput | jobs.CompletionInput) -> int:
    """At least 1: nothing is free."""
    if isinstance(work, jobs.CompletionInput):
        return prompts_estimate(work.prompts)
    text = sum(len(message.content) for message in work.messages)
    text += sum(len(tool.parameters_json) + len(tool.description) for tool in work.tools)
    return max(1, text // BYTES_PER_TOKEN + MESSAGE_TOKENS * len(work.messages))


def prompts_estimate(prompts: Iterable[jobs.Prompt]) -> int:
    """Exact where the client sent token ids."""
    total = 0
    for prompt in prompts:
        is_text = prompt.WhichOneof("kind") == "text"
        total += len(prompt.text) // BYTES_PER_TOKEN if is_text else len(prompt.tokens.ids)
    return max(1, total)
