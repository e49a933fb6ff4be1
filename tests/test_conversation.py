"""Thinking is told from the answer however the text is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4local.conversation import Kind, ThinkSplitter


def splits(text: str, most_cuts: int) -> Iterator[list[str]]:
    """Every way to cut a text in up to `most_cuts` places."""
    for count in range(most_cuts + 1):
        for cuts in combinations(range(1, len(text)), count):
            yield [text[a:b] for a, b in pairwise((0, *cuts, len(text)))]


def spoken(pieces: Sequence[str], *, thinking: bool = False) -> dict[Kind, str]:
    """What comes out of the pieces, by kind; thinking never follows the answer."""
    splitter = ThinkSplitter(thinking=thinking)
    parts = [part for piece in pieces for part in splitter.feed(piece)] + splitter.end()
    kinds = [kind for kind, _ in parts]
    assert kinds == sorted(kinds, reverse=True)
    assert all(text for _, text in parts)
    return {kind: "".join(text for k, text in parts if k == kind) for kind in ("thinking", "answer")}


CASES = (
    ("", "", ""),
    ("Hi", "", "Hi"),
    ("<think>a</think>b", "a", "b"),
    (" \n<think>a</think>\nb", "a", "\nb"),
    ("<think></think>b", "", "b"),
    ("<think>ab", "ab", ""),
    ("<think>a</thi", "a</thi", ""),
    ("<think>a<</think>b</think>", "a<", "b</think>"),
    ("<think><think></think>x", "<think>", "x"),
    ("<thin", "", "<thin"),
    ("<thinking>x", "", "<thinking>x"),
    ("a<think>b</think>", "", "a<think>b</think>"),
    (" \n ", "", " \n "),
    ("</think>b", "", "</think>b"),
)


@pytest.mark.parametrize(("text", "thinking", "answer"), CASES)
def test_every_way_to_cut_gives_the_same_parts(text: str, thinking: str, answer: str) -> None:
    every = len(text) <= 13
    for pieces in splits(text, len(text) if every else 3):
        assert spoken(pieces) == {"thinking": thinking, "answer": answer}, pieces
    assert spoken(list(text)) == {"thinking": thinking, "answer": answer}


def test_a_template_may_have_opened_the_thinking() -> None:
    for pieces in splits("ab</think>c", 4):
        assert spoken(pieces, thinking=True) == {"thinking": "ab", "answer": "c"}


@given(st.lists(st.sampled_from(("<think>", "</think>", "<", "think", ">", "/", " ", "a")), max_size=12), st.data())
def test_any_cut_equals_no_cut(tokens: list[str], data: st.DataObject) -> None:
    text = "".join(tokens)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    assert spoken([text[a:b] for a, b in pairwise((0, *cuts, len(text)))]) == spoken([text])


def test_nothing_is_held_back_longer_than_a_tag() -> None:
    splitter = ThinkSplitter()
    assert splitter.feed("<think>") == []
    assert splitter.feed("so <b>") == [("thinking", "so <b>")]
    assert splitter.feed("<") == []
    assert splitter.feed("/t") == []
    assert splitter.feed("able>") == [("thinking", "</table>")]
    assert splitter.feed("</think>Yes") == [("answer", "Yes")]
    assert splitter.feed(" <") == [("answer", " <")]
