"""Tools that a client of the wire could send."""

import json

import pytest

from deepflow.errors import InvalidRequest
from deepflow.v1 import jobs_pb2
from services.job_executor.tools import request
from services.job_executor.tools.request import check_tools, mode_of

Tool, Choice = jobs_pb2.Tool, jobs_pb2.ToolChoice
NAMED = jobs_pb2.TOOL_MODE_NAMED
DEEP = '{"a": ' * 65 + "1" + "}" * 65
LARGE = json.dumps({"description": "x" * (request.PARAMETERS_BYTES_MAX - 20)})


def chat(*tools: jobs_pb2.Tool, choice: jobs_pb2.ToolChoice | None = None) -> jobs_pb2.ChatInput:
    return jobs_pb2.ChatInput(tools=tools, tool_choice=choice)


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (chat(*(Tool(name=f"t{i}") for i in range(request.TOOLS_MAX + 1))), "tools"),
        (chat(Tool(name="a"), Tool(name="")), "tools[1].function.name"),
        (chat(Tool(name="a b")), "tools[0].function.name"),
        (chat(Tool(name='"')), "tools[0].function.name"),
        (chat(Tool(name="ä")), "tools[0].function.name"),
        (chat(Tool(name="a\n")), "tools[0].function.name"),
        (chat(Tool(name="a" * 65)), "tools[0].function.name"),
        (chat(Tool(name="a"), Tool(name="a")), "tools[1].function.name"),
        (chat(Tool(name="a", parameters_json="{")), "tools[0].function.parameters"),
        (chat(Tool(name="a", parameters_json="[]")), "tools[0].function.parameters"),
        (chat(Tool(name="a", parameters_json="[" * 99_999)), "tools[0].function.parameters"),
        (chat(Tool(name="a", parameters_json=DEEP)), "tools[0].function.parameters"),
        (chat(Tool(name="a", parameters_json=LARGE + " " * 99)), "tools[0].function.parameters"),
        (chat(*(Tool(name=f"t{i}", parameters_json=LARGE) for i in range(9))), "tools"),
        (chat(choice=Choice(mode=jobs_pb2.TOOL_MODE_REQUIRED)), "tools"),
        (chat(Tool(name="a"), choice=Choice(mode=NAMED, name="b")), "tool_choice.function.name"),
    ],
)
def test_bad_tools_are_refused(bad: jobs_pb2.ChatInput, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_tools(bad)
    assert caught.value.param == param
    assert len(caught.value.message) < 500


def test_good_tools_pass() -> None:
    check_tools(chat())
    check_tools(chat(Tool(name="a"), Tool(name="A-_9", parameters_json="{}")))
    check_tools(chat(Tool(name="a"), choice=Choice(mode=NAMED, name="a")))


def test_the_model_decides_where_nobody_else_did() -> None:
    assert mode_of(chat(Tool(name="a"))) == jobs_pb2.TOOL_MODE_AUTO
    assert mode_of(chat()) == jobs_pb2.TOOL_MODE_NONE
    none = Choice(mode=jobs_pb2.TOOL_MODE_NONE)
    assert mode_of(chat(Tool(name="a"), choice=none)) == jobs_pb2.TOOL_MODE_NONE
