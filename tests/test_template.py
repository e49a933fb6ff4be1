"""Chat templates: what honest ones get to work with, and what hostile ones get."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from phi4local.backends.child import ChildEngine, Deadlines, Host
from phi4local.backends.load_settings import LoadSettings
from phi4local.conversation import Message
from phi4local.engine import GenerationOptions
from phi4local.errors import FormatError, Phi4LocalError, UsageError
from phi4local.template import ChatTemplate, bounded_memory
from tests.gguf_models import write_scripted
from tests.shapes import (
    MINI_REASONING_TEMPLATE,
    PHI4_RELEASE_TEMPLATE,
    PHI4_TEMPLATE,
    REASONING_SYSTEM,
    REASONING_TEMPLATE,
)

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]


def render(source: str, messages: list[dict[str, str]] = TALK) -> str:
    return ChatTemplate(source, name="m.gguf", bos="<s>", eos="</s>").render(messages)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            PHI4_TEMPLATE,
            "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U<|im_end|><|im_start|>assistant<|im_sep|>A"
            "<|im_end|><|im_start|>user<|im_sep|>V<|im_end|><|im_start|>assistant<|im_sep|>",
        ),
        (
            PHI4_RELEASE_TEMPLATE,
            "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U<|im_end|><|im_start|>assistant<|im_sep|>A"
            "<|im_end|><|im_start|>user<|im_sep|>V<|im_end|><|im_start|>assistant<|im_sep|>",
        ),
        (
            MINI_REASONING_TEMPLATE,
            "<|system|>Your name is Phi, an AI math expert developed by Microsoft. S<|end|><|user|>U<|end|>"
            "<|assistant|>A<|end|><|user|>V<|end|><|assistant|>",
        ),
        (
            REASONING_TEMPLATE,
            f"<|im_start|>system<|im_sep|>{REASONING_SYSTEM}<|im_end|><|im_start|>user<|im_sep|>U<|im_end|>"
            "<|im_start|>assistant<|im_sep|>A<|im_end|><|im_start|>user<|im_sep|>V<|im_end|>"
            "<|im_start|>assistant<|im_sep|>",
        ),
        ("{{ bos_token }}\n{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n{{ m.content }}\n"
         "{% endfor %}", "<s>\nU\nA\nV\n"),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ '%s and %d' % ('a', 7 % 4) }} {{ 2 ** 10 }} {{ '=' * 3 }}", "a and 3 1024 ==="),
        ("{{ tools is none }}{{ undefined_thing }}{{ strftime_now('%Y') | length }}", "True4"),
    ],
)  # fmt: skip
def test_honest_templates(source: str, text: str) -> None:
    assert render(source) == text


def test_a_template_may_refuse_a_conversation() -> None:
    with pytest.raises(UsageError, match=r"Roles must alternate \?\[31m now$"):
        render("{{ raise_exception('Roles must alternate \x1b[31m\n now') }}")


def test_the_output_may_be_as_long_as_the_conversation() -> None:
    long = "x" * 3_000_000
    assert len(render("{{ messages[0].content }}", [{"role": "user", "content": long}])) == len(long)
    with pytest.raises(FormatError, match="output passes"):
        render("{% for i in range(90000) %}{{ '0123456789abcdef' }}{% endfor %}")


def test_memory_is_given_back() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with bounded_memory(64 << 20):
        assert resource.getrlimit(resource.RLIMIT_AS)[0] != before[0]
        with pytest.raises(MemoryError):
            bytearray(128 << 20)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


SECRET = "''.__class__.__mro__[1].__subclasses__()"
TOUCH = "os.popen('touch MARK').read()"
HOSTILE = {
    "mro": "{{ " + SECRET + " }}",
    "attr filter": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "attr filter in two steps": "{{ messages|attr('__cla' ~ 'ss__') }}",
    "map attribute": "{{ ['']|map(attribute='__class__.__mro__')|list }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format_map": "{{ '{a.__class__.__init__.__globals__}'.format_map({'a': raise_exception}) }}",
    "format by a filter": "{{ ('{0.__class__}'|attr('format'))('') }}{{ (''|attr('__class__')).mro() }}",
    "cycler": "{{ cycler.__init__.__globals__." + TOUCH + " }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('touch MARK').read() }}",
    "joiner": "{{ joiner.__init__.__globals__." + TOUCH + " }}",
    "namespace": "{{ namespace.__init__.__globals__." + TOUCH + " }}",
    "self": "{{ self.__init__.__globals__." + TOUCH + " }}",
    "own function": "{{ raise_exception.__globals__['sys'].modules['os'].system('touch MARK') }}",
    "own function's code": "{{ strftime_now.__code__.co_consts }}{{ raise_exception.__closure__[0] }}",
    "method's function": "{{ messages.append.__self__.__class__.__init__.__globals__ }}",
    "generator frame": "{{ (messages|map('upper')).gi_frame.f_globals }}",
    "import": "{% import 'os' as os %}{{ os.system('touch MARK') }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "changed conversation": "{{ messages.append(1) }}{{ messages[0].update({'content': 'x'}) }}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long range": "{% for i in range(10**12) %}{{ i }}{% endfor %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion in two ways": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "10 GB by *": "{{ 'a' * 9999999999 }}",
    "10 GB list": "{{ ([0] * 9999999999)|length }}",
    "10 GB by center": "{{ 'a'|center(9999999999) }}{{ 'a'.center(9999999999) }}",
    "10 GB by format": "{{ '%9999999999d' % 1 }}{{ '{:9999999999}'.format(1) }}",
    "indent": "{{ ('a\n' * 99999)|indent(999999) }}",
    "doubling by ~": "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by +": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling by join": "{% set n = namespace(s='ab') %}{% for i in range(99) %}"
    "{% set n.s = [n.s, n.s]|join %}{% endfor %}",
    "doubling by replace": "{% set n = namespace(s='aa') %}{% for i in range(99) %}"
    "{% set n.s = n.s.replace('a', 'aaaa') %}{% endfor %}",
    "large power": "{{ 9 ** (9 ** 9) }}",
    "growing product": "{% set n = namespace(x=7) %}{% for i in range(999) %}"
    "{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "deep parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep lists": "{{ " + "[" * 20000 + "]" * 20000 + " }}",
    "deep blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "slow filter": "{% for i in range(99999) %}{{ (range(99999)|list|sort|reverse|unique|list)[0] }}{% endfor %}",
    "syntax": "{% for message in messages %}{{ message['content'] }",
    "unknown filter": "{{ messages|no_such_filter }}",
    "wrong type": "{{ messages + 1 }}",
}  # fmt: skip


def failure(engine: ChildEngine) -> Phi4LocalError | None:
    """How a question ends, within five seconds."""
    started = time.monotonic()
    try:
        list(engine.open_session().stream([Message("user", "Hi")], GenerationOptions(max_tokens=1)))
    except Phi4LocalError as error:
        return error
    finally:
        assert time.monotonic() - started < 5
    return None


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_template_gets_an_error_and_nothing_else(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    path = tmp_path / "hostile.gguf"
    write_scripted(path, ["Hello"], template=HOSTILE[attack].replace("MARK", str(mark)))
    host = Host(tmp_path / "state", deadlines=Deadlines(template_seconds=1.0))
    engine = ChildEngine(LoadSettings(str(path), threads=1), host)
    try:
        errors = [failure(engine), failure(engine)]  # the next question finds an engine again
    finally:
        engine.close()
    for error in errors:
        assert isinstance(error, FormatError), error
        assert "hostile.gguf" in error.message
        assert error.message.isprintable()
        assert len(error.message) < 300
    assert {entry.name for entry in tmp_path.iterdir()} == {"hostile.gguf", "state"}  # no mark
