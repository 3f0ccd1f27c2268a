"""A chat: one prompt, made by the model's own template."""

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2
from services.job_executor.tokenizer.library import ServedModel
from services.job_executor.tokenizer.pool import WorkPool

PARAM = "messages"


async def prompts(
    chat: jobs_pb2.ChatInput, model: ServedModel, pool: WorkPool, tokens_max: int
) -> list[list[int]]:
    """The prompts as token ids. Raises InvalidRequest for what the template refuses."""
    template = model.tokenizer.template
    if template is None:
        raise InvalidRequest(
            f"The model `{model.name}` has no chat template; use /v1/completions with a prompt.",
            param="model",
            reason="chat_template_missing",
        )
    messages = [_as_dict(message) for message in chat.messages]
    if not messages:
        raise InvalidRequest("messages must hold at least one message", param=PARAM)

    def render_and_encode() -> list[int]:
        # The template writes the special tokens itself: adding them would double the first.
        text = template.render(messages)
        return model.tokenizer.encode(text, add_special_tokens=False, tokens_max=tokens_max)

    return [await pool.run(render_and_encode)]


def _as_dict(message: jobs_pb2.ChatMessage) -> dict[str, str]:
    fields = {"role": message.role, "content": message.content}
    if message.name:
        fields["name"] = message.name
    return fields
