"""The pages about the API say what the code does."""

import ast
import re
from pathlib import Path

import pytest

from deepflow import errors
from services.gateway.config import GatewayConfig
from services.gateway.http.app import METHOD_NOT_ALLOWED
from services.gateway.schema import limits
from services.gateway.schema.docs import docs_page
from services.gateway.schema.openapi import openapi_document
from services.gateway.schema.tables import PAGE, TABLES, sections, shape_word, with_tables

ROOT = PAGE.parents[1]
ERRORS = (ROOT / "docs" / "errors.md").read_text("utf-8")
# Where errors come from that an HTTP client can see.
SOURCES = ("services/gateway", "services/job_executor", "services/task_executor/shell")
KINDS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.DeepFlowError)
}
# Not by the kind of the error, but by what HTTP has for it.
OWN_STATUS = {"method_not_allowed": METHOD_NOT_ALLOWED, "head_too_large": 431}

# The base of all is what the others are made from.
NOT_RAISED = {("DeepFlowError", errors.DeepFlowError.default_reason)}

ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| `(\w+)` \| `(\w+)` \|", re.MULTILINE)


def rows() -> list[tuple[int, str, str, str]]:
    return [(int(status), kind, code, word) for status, kind, code, word in ROW.findall(ERRORS)]


def reasons_in(path: Path) -> set[tuple[str, str]]:
    """Every kind of error that a file makes with a reason of its own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in KINDS:
            found |= {
                (node.func.id, str(word.value.value))
                for word in node.keywords
                if word.arg == "reason" and isinstance(word.value, ast.Constant)
            }
    return found


def test_the_field_tables_are_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert with_tables(page) == page, "run `make docs`"
    assert set(sections(page)) == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_every_field_of_every_table_is_on_the_docs_page(name: str) -> None:
    page, fields = docs_page(), TABLES[name]
    names = [f.name for f in fields.honoured] + [f.name for f in fields.inert]
    for field_name in names:
        assert f"<code>{field_name}</code>" in page
    for field in fields.honoured:
        assert field.meaning.endswith("."), field.name
        assert shape_word(field.shape)


def test_openapi_has_every_route_of_the_api() -> None:
    paths = openapi_document()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/detokenize"):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["required"]) <= schema["properties"].keys()


def test_every_reason_is_listed() -> None:
    listed = {(kind, code) for _, kind, code, _ in rows()}
    given = {(name, kind.default_reason) for name, kind in KINDS.items()} - NOT_RAISED
    for source in SOURCES:
        for path in (ROOT / source).rglob("*.py"):
            given |= reasons_in(path)
    assert given - listed == set(), "add a row to docs/errors.md"


def test_every_row_says_the_status_and_type_of_its_kind() -> None:
    assert len(rows()) == len(set(rows()))
    for status, kind_name, code, word in rows():
        kind = KINDS[kind_name]
        assert word == kind.openai_type, code
        assert status == OWN_STATUS.get(code, kind.http_status), code


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    text = PAGE.read_text("utf-8").partition("## Limits\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| (.+) \| (\d+) \| (?:`(\w+)` )?\|", text, re.MULTILINE)
    settings = {name: int(value) for _, value, name in listed if name}
    defaults = {name: GatewayConfig.model_fields[name].default for name in settings}
    assert settings == defaults and len(settings) == 11
    fixed = {
        "`logprobs`, `top_logprobs`, `prompt_logprobs`": limits.LOGPROBS_MAX,
        "ids in `logit_bias`": limits.LOGIT_BIAS_MAX,
        "`stop_token_ids`": limits.STOP_TOKEN_IDS_MAX,
        "`tools`": limits.TOOLS_MAX,
        "`tool_calls` of a message": limits.CALLS_MAX,
        "`guided_choice`": limits.GRAMMAR_CHOICES_MAX,
    }
    assert {name: int(value) for name, value, setting in listed if not setting} == fixed
