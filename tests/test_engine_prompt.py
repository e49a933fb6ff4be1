"""Text never becomes a control token, whatever it looks like and wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4local.backends.prompt import ControlStrings, Prompts
from phi4local.template import ChatTemplate
from tests.shapes import MINI_TEMPLATE, PHI4_TEMPLATE

CONTROLS = {
    text: 10 + i
    for i, text in enumerate(("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|end|>", "<|user|>", "<|tag|>", "[/INST]"))
}
CONTROLS |= {"<|system|>": 30, "<|assistant|>": 31, "<|endoftext|>": 32}
FIRST_LETTER = 1000


@dataclass
class Letters:
    """A vocabulary with one token for a letter; some control strings are found in plain text too, as in llama.cpp."""

    eager: Sequence[str] = ()
    leading: int | None = None
    controls: dict[str, int] = field(default_factory=lambda: CONTROLS)

    def tokenise(self, text: str) -> list[int]:
        assert text
        for found in self.eager:
            before, string, after = text.partition(found)
            if string:
                return [i for part in (before, after) if part for i in self.tokenise(part)] + [CONTROLS[found]]
        return [FIRST_LETTER + ord(letter) for letter in text]


def text_of(ids: Sequence[int]) -> str:
    """Token ids as text; a control token is written in the order of its id, as a letter that no text has."""
    return "".join(chr(i - FIRST_LETTER) if i >= FIRST_LETTER else f"\0{i}\0" for i in ids)


def prompts(template: str, vocabulary: Letters) -> Prompts:
    return Prompts(ChatTemplate(template, name="test", bos="<|im_start|>", eos="<|endoftext|>"), vocabulary)


def phi4_prompt(*turns: tuple[str, str]) -> str:
    """What the phi-4 template should give, written without looking at the contents."""
    written = [f"\x0010\0{role}\x0011\0{content.strip()}\x0012\0" for role, content in turns]
    return "".join(written) + "\x0010\0assistant\x0011\0"


PARTS = (
    "<|im_end|>",
    "<|im_",
    "end|>",
    "<",
    "<|",
    "|>",
    ">",
    "|",
    "[/INST]",
    "[",
    "ST]",
    "user",
    "a",
    " ",
    "\ufdd0",
    "\n",
)
contents = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


@given(system=contents, user=contents, answer=contents)
def test_contents_stay_text(system: str, user: str, answer: str) -> None:
    turns = (("system", system), ("user", user), ("assistant", answer), ("user", user))
    messages = [{"role": role, "content": content} for role, content in turns]
    for eager in ((), ("<|tag|>", "<|im_end|>")):
        writer = prompts(PHI4_TEMPLATE, Letters(eager))
        assert text_of(writer.ids(writer.render(messages))) == phi4_prompt(*turns)


@given(contents, contents)
def test_neighbours_never_form_a_control_string(first: str, second: str) -> None:
    writer = prompts("{% for m in messages %}{{ m.content }}{% endfor %}", Letters())
    messages = [{"role": "user", "content": content} for content in (first, second)]
    assert text_of(writer.ids(writer.render(messages))) == first.strip() + second.strip()


def test_a_template_cannot_complete_a_role_with_a_content() -> None:
    writer = prompts("<|{{ messages[0].content }}|>", Letters())
    ids = writer.ids(writer.render([{"role": "user", "content": "user"}]))
    assert text_of(ids) == "<|user|>"
    assert CONTROLS["<|user|>"] not in ids


def test_the_role_that_a_template_splices_is_its_own() -> None:
    writer = prompts(MINI_TEMPLATE, Letters())
    ids = writer.ids(writer.render([{"role": "user", "content": "<|end|>"}]))
    assert text_of(ids) == "\x0014\0<|end|>\x0013\0\x0031\0"


def test_a_leading_token_is_written_once() -> None:
    asked = [{"role": "user", "content": "a"}]
    for leading, first in ((10, [10, FIRST_LETTER + ord("u")]), (32, [32, 10])):
        writer = prompts(PHI4_TEMPLATE, Letters(leading=leading))
        assert writer.ids(writer.render(asked))[:2] == first


def test_an_answer_gets_its_own_ids_back() -> None:
    writer = prompts(PHI4_TEMPLATE, Letters())
    writer.remember(" he<|im_end|>\n", [7, 8, 9])
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " he<|im_end|>\n"}]
    assert "\0\x007\0\x008\0\x009\0\x0012\0" in f"\0{text_of(writer.ids(writer.render(turns)))}"
    turns[1]["content"] = "he<|im_end|>"  # not that text
    assert "\x007\0" not in text_of(writer.ids(writer.render(turns)))


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "OLD<|IM_END|>"),
        ("{% for m in messages %}{{ m.content.split('ld')[-1] }}{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m.content[2:] }}|{{ m.content[:3] }}{% endfor %}", None),
    ],
)
def test_an_answer_that_the_template_changed_is_read_as_text(template: str, text: str | None) -> None:
    writer = prompts(template, Letters())
    writer.remember("old<|im_end|>", [7, 8, 9])
    ids = writer.ids(writer.render([{"role": "assistant", "content": "old<|im_end|>"}]))
    assert not {7, 8, 9, CONTROLS["<|im_end|>"]}.intersection(ids)
    assert text is None or text_of(ids) == text


def test_old_answers_are_forgotten_when_there_are_too_many() -> None:
    writer = prompts(PHI4_TEMPLATE, Letters())
    for number in range(5):
        writer.remember(f"answer {number}", [number] * 100_000)
    asked = [[{"role": "assistant", "content": f"answer {number}"}] for number in range(5)]
    lengths = [len(writer.ids(writer.render(messages))) for messages in asked]
    assert [length > 100_000 for length in lengths] == [False, False, False, True, True]


def test_control_strings_inside_each_other() -> None:
    controls = ControlStrings({"<|a|>": 1, "<|a|><|b|>": 2, "|><": 3})
    assert controls.split("x<|a|><|b|>y<|a|>") == ["x", "<|a|><|b|>", "y", "<|a|>"]
    guarded = controls.guarded("<|a|><|b|>", "#")
    assert guarded.replace("#", "") == "<|a|><|b|>"
    assert not [part for part in controls.split(guarded) if part in ("<|a|>", "<|a|><|b|>", "|><")]


def test_a_vocabulary_without_control_strings() -> None:
    controls = ControlStrings({})
    assert controls.guarded("<|im_end|>", "#") == "<|im_end|>"
    assert controls.split("<|im_end|>") == ["<|im_end|>"]
