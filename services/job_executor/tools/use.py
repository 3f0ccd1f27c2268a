"""How one job uses tools: what its answers must be, and how they are read."""

from collections.abc import Mapping
from dataclasses import dataclass

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2
from services.job_executor.tokenizer.detokenizer import Detokenizer
from services.job_executor.tokenizer.library import ServedModel
from services.job_executor.tokenizer.pool import WorkPool
from services.job_executor.tools.answer import AnswerCalls, TagDetokenizer
from services.job_executor.tools.forcing import forced_calls
from services.job_executor.tools.formats import ToolFormat, format_of
from services.job_executor.tools.request import check_tools, is_forced, mode_of


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The same for every choice of a job."""

    form: ToolFormat
    names: frozenset[str]
    tags: Mapping[int, str]  # by token id, where a tag is one token
    stops_after_call: bool  # where no grammar ends it there
    # A call that the client named is what it got: it hears "stop", as from OpenAI.
    tells_calls: bool
    is_forced: bool

    def new_calls(self, handle: int, choice_index: int) -> AnswerCalls:
        return AnswerCalls(
            self.form.new_parser(self.names),
            handle=handle,
            choice_index=choice_index,
            stops_after_call=self.stops_after_call,
            tells_calls=self.tells_calls,
            is_forced=self.is_forced,
        )

    def detokenizer(self, inner: Detokenizer) -> Detokenizer:
        return TagDetokenizer(inner, self.tags) if self.tags else inner


async def use_tools(job: jobs_pb2.Job, model: ServedModel, pool: WorkPool) -> ToolUse | None:
    """None where no answer can hold a call. Where one must, the job gets its grammar.

    Raises InvalidRequest for what cannot be met.
    """
    if not job.chat.tools and not is_forced(job.chat):
        return None
    return await pool.run(lambda: _use_tools(job, model))


def _use_tools(job: jobs_pb2.Job, model: ServedModel) -> ToolUse | None:
    chat = job.chat
    check_tools(chat)
    mode = mode_of(chat)
    if mode == jobs_pb2.TOOL_MODE_NONE:
        return None
    has_grammar = job.sampling.grammar.WhichOneof("kind") is not None
    if has_grammar and is_forced(chat):
        raise InvalidRequest(
            "tool_choice asks for a call, so the answer cannot follow "
            f"{job.sampling.grammar.param or 'a grammar'} as well; send one of them",
            param="tool_choice",
        )
    if has_grammar:
        return None  # the answer is what the grammar says, which knows no calls
    form = _form_of(model)
    is_named = mode == jobs_pb2.TOOL_MODE_NAMED
    if is_forced(chat):
        wanted = {
            i: tool
            for i, tool in enumerate(chat.tools)
            if not is_named or tool.name == chat.tool_choice.name
        }
        is_single = chat.single_tool_call or is_named
        grammar = forced_calls(wanted, form, is_single=is_single, id_of=model.tokenizer.id_of)
        job.sampling.grammar.CopyFrom(grammar)
    return ToolUse(
        form=form,
        names=frozenset(tool.name for tool in chat.tools),
        tags=_tags(form, model),
        stops_after_call=chat.single_tool_call and not is_forced(chat),
        tells_calls=not is_named,
        is_forced=is_forced(chat),
    )


def _form_of(model: ServedModel) -> ToolFormat:
    template = model.tokenizer.template
    source = template.tools_source if template is not None else ""
    form = format_of(model.deployment.tool_format, source)
    if form is None:
        raise InvalidRequest(
            f"how {model.name} writes tool calls is not known: its chat template does not tell, "
            "and it was deployed without a tool format",
            param="tools",
            reason="tools_unsupported",
        )
    return form


def _tags(form: ToolFormat, model: ServedModel) -> dict[int, str]:
    found = ((model.tokenizer.id_of(tag), tag) for tag in form.tags)
    return {token_id: tag for token_id, tag in found if token_id is not None}
