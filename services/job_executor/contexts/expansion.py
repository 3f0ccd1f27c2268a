"""A job with its context in front of its input. Pure."""

from deepflow.errors import InvalidRequest
from deepflow.v1 import contexts_pb2, jobs_pb2
from services.job_executor.contexts.rules import ID_PARAM


def expand(job: jobs_pb2.Job, content: contexts_pb2.ContextContent) -> None:
    """Changes the job. Raises InvalidRequest where the two cannot be joined."""
    if job.HasField("chat"):
        _expand_chat(job.chat, content)
    elif job.HasField("completion"):
        _expand_completion(job.completion, content)
    else:
        raise _mismatch("only chats and completions can have one")


def _expand_chat(chat: jobs_pb2.ChatInput, content: contexts_pb2.ContextContent) -> None:
    """The template sees one conversation: the context's messages, then the request's."""
    if not content.HasField("chat"):
        raise _mismatch("it was made from a prompt; use it with /v1/completions")
    if not chat.messages:
        raise InvalidRequest("messages must hold at least one message", param="messages")
    own = list(chat.messages)
    del chat.messages[:]
    chat.messages.extend(content.chat.messages)
    chat.messages.extend(own)


def _expand_completion(
    completion: jobs_pb2.CompletionInput, content: contexts_pb2.ContextContent
) -> None:
    """Each prompt begins with the context, texts with a text and token ids with token ids."""
    if not content.HasField("prompt"):
        raise _mismatch("it was made from messages; use it with /v1/chat/completions")
    kind = content.prompt.WhichOneof("kind")
    for prompt in completion.prompts:
        if prompt.WhichOneof("kind") != kind:
            words = "a text" if kind == "text" else "token ids"
            raise _mismatch(f"it was made from {words}; send the prompt as {words}, too")
        if kind == "text":
            prompt.text = content.prompt.text + prompt.text
        else:
            own = list(prompt.tokens.ids)
            del prompt.tokens.ids[:]
            prompt.tokens.ids.extend([*content.prompt.tokens.ids, *own])


def _mismatch(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"this context cache does not fit: {why}", param=ID_PARAM, reason="context_cache_mismatch"
    )
