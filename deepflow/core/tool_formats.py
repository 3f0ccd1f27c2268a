"""The ways in which models write tool calls, by the names that a deployment may choose from."""

HERMES = "hermes"  # <tool_call>{"name": …, "arguments": {…}}</tool_call>, anywhere in the answer
LLAMA3 = "llama3"  # {"name": …, "parameters": {…}}, where the answer begins

TOOL_FORMATS = (HERMES, LLAMA3)
