"""A message's Markdown as lines: what it looks like, how it grows, and what hostile text does to it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.style import Style
from textual.strip import Strip

from phi4local.printing import printable_lines
from tests.test_formulas import DISPLAY, INLINE
from ui.blocks import Body, Code, Look, source_lines
from ui.inline import pieces

LOOK = Look(code_block=Style(bgcolor="#202020"), code=Style(color="#aabbcc"))


def shown(markdown: str, width: int = 40) -> str:
    return "\n".join(strip.text.rstrip() for strip in Body(markdown).lines(width, LOOK))


def told(strips: Sequence[Strip]) -> list[list[tuple[str, Style | None]]]:
    """All of some lines: their text and its styles, and that their widths are true."""
    assert all(strip.cell_length == Strip(list(strip)).cell_length for strip in strips)
    return [[(segment.text, segment.style) for segment in strip] for strip in strips]


PAGES = {
    "paragraphs": ("One *two*\n**three** `four`.  \nfive\n\nsix", "One two three four.\nfive\n\nsix"),
    "headings": ("# A $x^2$\n## B ##\ntext\nC\n===", "A x²\n━━━━\n\nB\n\ntext C\n━━━━━━"),
    "rules": ("a\n\n---\nb\n\n* * *", f"a\n\n{'─' * 40}\n\nb\n\n{'─' * 40}"),
    "bullets": (
        "- one that is longer than the forty cells there are\n- two\n  - three\n    - four\n\n- five",
        "• one that is longer than the forty\n  cells there are\n• two\n  ◦ three\n    ▪ four\n\n• five",
    ),
    "numbers": ("3. a\n1. b\n   more\n\n   text\n9) c", "3. a\n4. b more\n\n   text\n\n9) c"),
    "ten": ("9. a\n10. b\n   - c\n11. d", "9. a\n10. b\n    • c\n11. d"),
    "years": ("It was\n1984. So\n1. one", "It was 1984. So\n\n1. one"),
    "tasks": ("- [x] done\n- [ ] open\n1. [x] both", "☑ done\n☐ open\n\n1. ☑ both"),
    "quotations": (
        "> a\nlazy\n>\n> - b\n> > c\n\nd",
        "▎ a lazy\n▎\n▎ • b\n▎ ▎ c\n\nd",
    ),
    "links": (
        "[a](http://b.c) <http://d.e> ![cat](f.png) [g] [http://h.i](http://h.i)",
        "a (http://b.c) http://d.e cat (f.png)\n[g] http://h.i",
    ),
    "html": ("<div>\n  *a*\n</div>\n\nb <i>c</i><br/>d &lt; e", "<div>\n  *a*\n</div>\n\nb <i>c</i>\nd < e"),
    "a formula": (
        "Text \\[\n\\frac{1}{2}\n- x\n\\] more\n\n- $$a^2$$\n> $$\n> b\n> $$",
        "Text\n  1\n  ─ - x\n  2\nmore\n\n•   a²\n\n▎   b",
    ),
    "an open formula": ("So\n$$\nx\n- y", "So $$ x - y"),
    "code with formulas": ("`$x$` [a](http://b/$c$d) <i $x$>", "$x$ a (http://b/$c$d) <i x>"),
    "a table": (
        "Look:\n| a | $|x|$ | c |\n|---|--:|:-:|\n| **b** | 1 |\n| d | 22 | ee | f |",
        dedent("""\
            Look:

            ┌───┬─────┬────────┐
            │ a │ |x| │   c    │
            ├───┼─────┼────────┤
            │ b │   1 │        │
            │ d │  22 │ ee | f │
            └───┴─────┴────────┘"""),
    ),
    "a wide table": (
        "| a | b |\n|---|---|\n| one two three four five | six seven eight nine ten |\n| x | y |",
        dedent("""\
            ┌──────────────────┬───────────────────┐
            │ a                │ b                 │
            ├──────────────────┼───────────────────┤
            │ one two three    │ six seven eight   │
            │ four five        │ nine ten          │
            ├──────────────────┼───────────────────┤
            │ x                │ y                 │
            └──────────────────┴───────────────────┘"""),
    ),
    "code": (
        "```python\nif x:\n\ty = 1\n```\n\n1. a\n   ~~~\n   b\n   ~~~\n\nc\n\n    indented\n\n      more",
        f" python{'copy':>32}\n if x:\n     y = 1\n\n1. a\n{'copy':>39}\n    b\n\nc\n\n indented\n\n   more",
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_looks_as_it_should(name: str) -> None:
    markdown, expected = PAGES[name]
    assert shown(markdown) == expected


def test_a_table_without_room_is_a_list() -> None:
    assert shown("| a | b |\n|---|---|\n| long words | more |", 10) == f"a: long\nwords\nb: more\n{'─' * 10}"


def test_a_long_table_goes_on_as_another_with_the_same_head() -> None:
    text = shown("| n |\n|---|\n" + "".join(f"| {n} |\n" for n in range(120)), 20)
    assert text.count("│ n ") == 3
    assert [int(n) for n in re.findall(r"│ (\d+)", text)] == list(range(120))


def test_listings_are_copied_as_they_were_written() -> None:
    body = Body(
        "Look:\n```Makefile title\nall:\n\techo " + "x" * 60 + "\n```\n> ```\n> \x1b[31m\n> ```\n- ```{r}\n  y\n"
    )
    lines = body.lines(40, LOOK)
    codes = body.codes()
    assert codes == [Code("Makefile", "all:\n\techo " + "x" * 60, 2), Code("", "\x1b[31m", 7), Code("r", "y", 10)]
    for number, code in enumerate(codes):
        buttons = [segment for segment in lines[code.line] if segment.style and segment.style.meta]
        assert [button.text for button in buttons] == ["copy"]
        assert buttons[0].style
        assert buttons[0].style.meta == {"@click": f"copy_code({number})"}
    assert "".join(strip.text[1:39] for strip in lines[4:6]).strip() == "echo " + "x" * 60


def test_languages_are_named_never_guessed() -> None:
    def colours(language: str) -> set[str]:
        strips = Body(f"```{language}\nimport x; '''a\n\nb''' # c\n```\n").lines(60, LOOK)[1:]
        return {str(s.style.color) for strip in strips for s in strip if s.style and s.style.color}

    assert len(colours("python")) > 2
    assert colours("python3") == colours("PYTHON") == colours("python")
    assert colours("") == colours("klingon") == set()


def test_only_what_is_new_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    markdown = "".join(f"- item *{n}*\n" for n in range(100)) + "\n".join(f"Text **{n}**\n" for n in range(100))
    body = Body()
    pieces.cache_clear()
    for start in range(0, len(markdown), 8):
        body.append(markdown[start : start + 8])
        lines = body.lines(60, LOOK)
        assert body.lines(60, LOOK) is lines
    assert pieces.cache_info().misses < 2 * len(markdown) / 8


def test_a_long_answer_streams_at_a_steady_price() -> None:
    page = "\n\n".join(markdown for markdown, _ in PAGES.values() if "$$\nx\n- y" not in markdown)

    def seconds(text: str) -> float:
        body, begun = Body(), time.process_time()
        for start in range(0, len(text), 32):
            body.append(text[start : start + 32])
            body.lines(80, LOOK)
        return time.process_time() - begun

    text = page * (12_000 // len(page) + 1)
    seconds(page)
    once = seconds(text)
    assert once < 6  # 30 seconds at 100 tokens a second; 0.2 on an idle machine
    assert seconds(text * 3) < 5 * once + 0.5


# ---- however a text arrives ----

_SNIPPETS = [markdown for markdown, _ in PAGES.values()]
_SNIPPETS += ["\n", "\n\n", "  ", "    ", "\t", "\r", "\r\n", "- ", "1. ", "2) ", "> ", "# ", "```", "```py\n", "~~~"]
_SNIPPETS += [
    "| a | b |\n",
    "|---|---|\n",
    "|",
    "---",
    "===",
    "-",
    "=",
    "\n***\n",
    "**",
    "*",
    "_",
    "`",
    "~~",
    "[",
    "](",
    ")",
]
_SNIPPETS += [
    "$$",
    "$",
    r"\[",
    r"\]",
    r"\(x\)",
    r"\frac{1}{2}",
    r"\begin{align}",
    r"\end{align}",
    "\\",
    "<br>",
    "<div>",
]
_SNIPPETS += [
    "<b",
    "&amp;",
    "&#x202e;",
    "![",
    "[x] ",
    "中文",
    "👨‍👩‍👧",
    "❤️",
    "\u200d",
    "\ufe0f",
    "e\u0301",
    "a b c",
    "word " * 30,
]
_SNIPPETS += ["\x1b[31m", "\x1b]52;c;eA==\x07", "\x9b", "\u202e", "\u200b", "\ufdd0", "\ufdd00\ufdd1", "\ud800", "\x00"]
_SNIPPETS += ["[red]x[/]", "[@click=app.quit]y[/]", "x" * 50, "    x = '''\n", '"""\n', "def f(x):\n"]
_MARKDOWN = st.lists(st.sampled_from(_SNIPPETS) | st.text(max_size=3), max_size=20).map("".join)


def in_pieces(markdown: str, cuts: Sequence[int], width: int) -> Body:
    body, start = Body(), 0
    for cut in [*cuts, len(markdown)]:
        body.append(markdown[start:cut])
        if cut % 3:
            body.lines(width, LOOK)
        body.codes()
        start = max(start, cut)
    return body


@settings(deadline=None, max_examples=300)
@given(_MARKDOWN, st.data(), st.integers(10, 120))
def test_lines_are_the_same_however_a_text_arrives(markdown: str, data: st.DataObject, width: int) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(markdown)), max_size=12)))
    body, whole = in_pieces(markdown, cuts, width), Body(markdown)
    assert told(body.lines(width, LOOK)) == told(whole.lines(width, LOOK))
    assert body.markdown == markdown
    assert body.codes() == whole.codes()
    assert told(body.lines(33, LOOK)) == told(whole.lines(33, LOOK))


def test_pages_arrive_sign_by_sign() -> None:
    page = "\n\n".join(markdown for markdown, _ in PAGES.values())
    page += "\n\n".join(f"so ${latex}$ is" for latex, _ in INLINE[:30])
    page += "\n\n".join(f"so\n$$\n{latex}\n$$\nis" for latex, _ in DISPLAY)
    body = in_pieces(page, range(0, len(page), 3), 60)
    assert told(body.lines(60, LOOK)) == told(Body(page).lines(60, LOOK))
    assert told(body.lines(30, LOOK)) == told(Body(page).lines(30, LOOK))
    assert "∑  ── = ──" in shown(page, 60)


def test_a_long_listing_arrives_line_by_line() -> None:
    lines = "".join(f'def f{n}():\n    """text\n    more"""\n' for n in range(120))
    for text in ("```python\n" + lines, "```python\n" + lines + "```\n"):
        body = in_pieces(text, range(0, len(text), 40), 60)
        assert told(body.lines(60, LOOK)) == told(Body(text).lines(60, LOOK))


# ---- foreign text ----


@settings(deadline=None, max_examples=300)
@given(_MARKDOWN, st.integers(10, 300))
def test_foreign_text_does_not_act(markdown: str, width: int) -> None:
    for strips in (Body(markdown).lines(width, LOOK), source_lines(markdown, width, LOOK)):
        for line in told(strips):
            for text, style in line:
                assert text == printable_lines(text)
                assert not re.search("[\n\t\u200b\ufdd0\ufeff\ud800]", text)
                assert not style or not style.link
                assert not style or not style.meta or text == "copy"
        assert all(strip.cell_length <= width for strip in strips)


def test_markup_and_escapes_are_text() -> None:
    text = "[red]a[/] [@click=app.quit]b[/] \x1b[31mc\x1b]8;;http://d\x07e \u202ef"
    assert shown(text, 80) == "[red]a[/] [@click=app.quit]b[/] \ufffd[31mc\ufffd]8;;http://d\ufffde \ufffdf"
    assert shown(f"`{text}`", 80) == shown(text, 80)
    assert shown("&#x202e;&#27;&#x200b;a") == "\ufffd\ufffd\ufffda"
    assert shown("a\u200db 中文 👨‍👩‍👧") == "a\u200db 中文 👨‍👩‍👧"


def test_the_source_is_shown_as_it_is() -> None:
    strips = source_lines("# a\n\n\t**b** $c$\r\nlong line of words", 10, LOOK)
    assert [strip.text for strip in strips] == ["# a", "", "    **b**", "$c$", "long line", "of words"]


MANY = 100_000
HOSTILE = {
    "quotations": ">" * MANY,
    "brackets": "[" * MANY,
    "stars": "*" * MANY,
    "backticks": "`" * MANY,
    "runs of backticks": "".join("`" * (n % 50 + 1) + " " for n in range(300)),
    "deep lists": "".join("  " * n + "- a\n" for n in range(1000)),
    "deep items": "- " * 1000 + "x",
    "deep quotations": "> " * 1000 + "x",
    "a long line": "word " * 200_000,
    "a long word": "x" * 1_000_000,
    "a long line of joiners": "\u200d" * 100_000,
    "links": "[a](b" * 1500,
    "links in links": "[" * 499 + "]()" * 499,
    "images": "![" * 499 + "x",
    "emphasis": "**a *" * 1500,
    "words_with_signs": "a_b *" * 1500,
    "tags": "<a b=c " * 1100,
    "addresses": "<http:" * 1300,
    "columns": "| a " * 1000 + "|\n" + "|-" * 1000 + "|\n" + "|x\n" * 400,
    "spaces": "# " + " " * MANY + "x\na|b\n|-" + " " * MANY + "x\n" + "- " * MANY + "x",
    "open formulas": r"\begin{a}" * 800 + r"\boxed{" * 800 + "$a " * 500,
    "code": "```py\n" + "x = (" * 200_000,
    "make": "```makefile\n" + ("1" * 900 + "\n") * 100,
    "accents": "a" + "\u0301" * MANY,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_bounded(name: str) -> None:
    begun = time.process_time()
    strips = Body(HOSTILE[name]).lines(80, LOOK)
    assert time.process_time() - begun < 4  # 0.6 on an idle machine
    assert all(strip.cell_length <= 80 for strip in strips)


def test_a_message_without_end_says_what_is_left_out() -> None:
    lines = Body("a\n\n" * 200_000).lines(80, LOOK)
    assert lines[-1].text == "… 66,667 more characters, which are too many to show"
    listing = Body("```py\n" + "x = 1\n" * 12_000)
    assert listing.lines(80, LOOK)[-1].text.strip() == "… 2,000 more lines, which a copy has, too"
    assert len(listing.codes()[0].text) == 6 * 12_000 - 1


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, ui.blocks as b; b.Body('plain\\n\\n# text').lines(80, b.Look()); "
        "print([m for m in ('pygments', 'markdown_it', 'pylatexenc', 'textual.app') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
