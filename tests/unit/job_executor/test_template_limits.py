"""No step of a template makes gigabytes of a client's number or text; what is usual stays."""

import json
from typing import Any

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from deepflow.errors import InvalidRequest
from services.job_executor.tokenizer.chat_template import ChatTemplate
from services.job_executor.tokenizer.template_limits import TEXT_LENGTH_MAX

HUGE = 10**12
LONG = "ab" * 20_000
HI = [{"role": "user", "content": "hi\nyou"}]


def render(source: str, **arguments: Any) -> str:
    return ChatTemplate(source, {}).render(HI, None, arguments)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' | center(n) }}",
        "{{ 'a\nb' | indent(n) }}",
        "{{ 'a' | batch(n, 'x') | list }}",
        "{{ [1] | slice(n) | list }}",
        "{{ 1.5 | round(n, 'ceil') }}",
        "{{ messages | tojson(indent=n) }}",
        "{{ '%*d' | format(n, 1) }}",
        "{{ 'a'.center(n) }}",
        "{{ 'a'.ljust(n) }}",
        "{{ 'a'.rjust(n, 'x') }}",
        "{{ 'a'.zfill(n) }}",
        "{{ 'a\t'.expandtabs(n) }}",
        "{{ n.to_bytes(n, 'big') }}",
        "{{ '%*d' % (n, 1) }}",
        "{{ '{:{}d}'.format(1, n) }}",
        "{{ '{:.{n}f}'.format(1.5, n=n) }}",
        "{{ '{a:{b}}'.format_map({'a': 1, 'b': n}) }}",
        "{{ ('%' ~ n ~ 'd') % 1 }}",
        "{{ ('%.' ~ n ~ 'f') | format(1.5) }}",
        "{{ ('{:' ~ n ~ '}').format(1) }}",
        "{{ ('{:' ~ n ~ '}' | safe).format(1) }}",
        "{{ [1] * n }}",
    ],
)  # fmt: skip
def test_a_number_is_no_measure_of_what_is_made(source: str) -> None:
    for number in (HUGE, HUGE**9):
        with pytest.raises(InvalidRequest, match=r"too long|too large|spaced by more") as refused:
            render(source, n=number)
        assert refused.value.reason == "chat_template_error"
        assert refused.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    "source",
    [
        "{{ long | replace('a', long) }}",
        "{{ long.replace('b', long) }}",
        "{{ long.replace('', long) }}",
        "{{ range(90000) | join(long) }}",
        "{{ long.join(long) }}",
        "{{ long | wordwrap(1, wrapstring=long) }}",
        "{{ (many | join) % {'a': long} }}",
        "{{ messages | tojson(separators=(long, long)) }}",
        "{{ messages | tojson(indent=long) }}",
        "{% for i in range(1000) %}{{ long }}{% endfor %}",
    ],
)
def test_texts_are_not_multiplied_with_one_another(source: str) -> None:
    with pytest.raises(InvalidRequest, match=r"too long|spaced by|over 16000000") as refused:
        render(source, long=LONG, many=["%(a)s"] * 1000)
    assert refused.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' | center(9) }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\nb' | indent('> ') }}",
        "{{ [1, 2, 3] | batch(2, 'x') | list }}{{ [1, 2, 3] | slice(2, 'y') | list }}",
        "{{ 1.25 | round(1, 'ceil') }}{{ 7 | round }}{{ 'a b c' | wordwrap(1) }}",
        "{{ '%5.2f %s %%' | format(1.5, 'x') }}{{ '%(a)s' | format(a=3) }}{{ '%*d' % (4, 1) }}",
        "{{ 'a'.center(5, '-') }}{{ 'a'.ljust(3) }}{{ 'a'.zfill(3) }}{{ 'a\t'.expandtabs() }}",
        "{{ '{:>5} {a!r}'.format('x', a=1) }}{{ '{a[0]}'.format_map({'a': [1]}) }}",
        "{{ ('<{}>' | safe).format('<') }}{{ 7 % 4 }}{{ '%s-%s' % ('a', 'b') }}{{ '%d' % 3 }}",
        "{{ messages | map(attribute='content') | join('; ') }}{{ [1, 2] | join }}",
        "{{ messages[0].content | replace('\n', '\\\\n') }}{{ 'aa'.replace('a', 'bb', 1) }}",
        "{{ '-'.join(['a', 'b']) }}{% macro m(obj, context) %}{{ obj }}{% endmacro %}"
        "{{ m(obj=1, context=2) }}",
    ],
)
def test_what_is_usual_is_as_jinja_makes_it(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    assert render(source) == plain.from_string(source).render(messages=HI)


def test_json_may_be_indented() -> None:
    assert render("{{ messages | tojson(indent=n) }}", n=2) == json.dumps(HI, indent=2)


def test_a_long_message_may_grow_by_what_is_put_into_it() -> None:
    message = [{"role": "user", "content": "a\n" * (TEXT_LENGTH_MAX // 4)}]
    template = ChatTemplate("{{ messages[0].content | replace('\n', '\\\\n') | length }}", {})
    assert template.render(message) == str(TEXT_LENGTH_MAX // 4 * 3)


def test_text_by_chance_is_no_part_of_a_prompt() -> None:
    with pytest.raises(InvalidRequest, match="lipsum"):
        render("{{ lipsum(n=n) }}", n=1)


def test_what_fails_the_same_without_arguments_is_about_the_messages() -> None:
    with pytest.raises(InvalidRequest, match="these messages: no system role") as refused:
        render("{{ raise_exception('no system role') }}", x="thanks")
    assert refused.value.param == "messages"
    picky = "{% if x is defined %}{{ raise_exception('no x') }}{% endif %}"
    with pytest.raises(InvalidRequest, match="these chat_template_kwargs: no x") as refused:
        render(picky, x=1)
    assert refused.value.param == "chat_template_kwargs"
