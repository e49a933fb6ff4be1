"""The transcript on a terminal: what is followed, what stays where it is, what can be reached, copied and selected."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from textual import events
from textual.pilot import Pilot

from phi4local.chats import Message, Speaker
from tests.screens import drawn, play, until
from ui.chat import ChatScreen
from ui.transcript import Transcript
from ui.turn import Place, Turn

TAG = re.compile(r"t\d{4}")
CODE = "```python\nprint({})\n```"


def turn(number: int, role: Speaker, text: str, thinking: str = "") -> Turn:
    message = Message(number, 1, None, role, text, thinking, 2.0, "complete", None, (), "2026-11-20T00:00:00Z")
    return Turn(message, Place(), "phi-4")


def tagged(first: int, count: int) -> str:
    """So many paragraphs, each with a name of its own."""
    return "\n\n".join(f"t{first + one:04} " + "and some words that fill the lines " * 4 for one in range(count))


def talk(count: int, paragraphs: int = 6) -> list[Turn]:
    """Questions and answers; the answers have paragraphs in the order of their tags."""
    return [
        turn(one, "assistant" if one % 2 else "user", tagged(one * 100, paragraphs) if one % 2 else f"Question {one}?")
        for one in range(count)
    ]


def growing(number: int) -> Turn:
    answer = turn(number, "assistant", "")
    answer.begin("…")
    return answer


def grow(chat: ChatScreen, answer: Turn, text: str, thinking: str = "") -> None:
    answer.grow(text, thinking, 0.0)
    chat.transcript.changed(answer)


async def still(pilot: Pilot[None], chat: ChatScreen) -> None:
    """Everything far away has been made too, and the scrollbar knows."""
    transcript = chat.transcript
    await until(pilot, lambda: transcript._idle and not transcript._idle._active.is_set())
    await pilot.pause()


def at_end(transcript: Transcript) -> bool:
    return transcript.scroll_offset.y == transcript.max_scroll_y > 0


def row(chat: ChatScreen, text: str) -> int:
    """The first line of the view with that text."""
    return next(y for y, line in enumerate(drawn(chat).splitlines()) if text in line)


# ---- following ----


def test_the_end_is_followed_until_the_user_scrolls_up() -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        transcript, answer = chat.transcript, growing(99)
        transcript.show(talk(6))
        transcript.add(answer)
        for word in range(120):
            grow(chat, answer, f"word{word} ")
        assert at_end(transcript)
        await pilot.pause()
        assert "word119" in drawn(chat)
        transcript.post_message(wheel(transcript, events.MouseScrollUp))
        await until(pilot, lambda: not at_end(transcript))
        seen, top = drawn(chat), transcript.scroll_offset
        for word in range(120, 400):
            grow(chat, answer, f"word{word} ")
        await pilot.pause()
        assert (drawn(chat), transcript.scroll_offset) == (seen, top)
        await pilot.press("shift+tab", "end")
        grow(chat, answer, "\n\nthe end")
        await pilot.pause()
        assert at_end(transcript)
        assert "the end" in drawn(chat)

    play(scene)


def wheel(transcript: Transcript, kind: type[events.MouseScrollUp | events.MouseScrollDown]) -> events.MouseEvent:
    return kind(transcript, 5, 5, 0, 0, 0, False, False, False)


def test_a_new_message_is_looked_at_also_by_somebody_who_has_scrolled_up() -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        chat.transcript.show(talk(6))
        await pilot.press("shift+tab", "home")
        assert chat.transcript.scroll_offset.y == 0
        chat.transcript.add(turn(99, "user", "The newest"))
        await pilot.pause()
        assert at_end(chat.transcript)
        assert "The newest" in drawn(chat)

    play(scene)


def test_an_answer_that_is_resized_while_it_grows() -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        transcript, answer = chat.transcript, growing(99)
        transcript.show(talk(40))
        transcript.add(answer)
        for size in ((200, 60), (80, 24), (40, 20), (200, 60), (80, 24)):
            for word in range(60):
                grow(chat, answer, f"word{word} ")
            await pilot.resize_terminal(*size)
            await until(pilot, lambda: at_end(transcript))
            assert "word59" in drawn(chat)
        await pilot.press("shift+tab", *["pageup"] * 9)
        tags = TAG.findall(drawn(chat))
        for size in ((200, 60), (80, 24)):
            grow(chat, answer, "more words " * 30)
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert set(TAG.findall(drawn(chat))) & set(tags)
            assert not at_end(transcript)

    play(scene)


def test_a_terminal_of_ten_cells() -> None:
    words = [f"w{number}" for number in range(60)]

    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        chat.transcript.show([turn(1, "assistant", " ".join(words))])
        await pilot.press("shift+tab", "home")
        seen = [text async for page in pages(pilot, chat, "pagedown") for text in page.replace("▌", " ").split()]
        assert [word for word in words if word in seen] == words

    play(scene, size=(10, 40))


async def pages(pilot: Pilot[None], chat: ChatScreen, key: str) -> AsyncIterator[str]:
    """What is seen, page by page, until the key changes nothing."""
    before = ""
    while (seen := drawn(chat)) != before:
        yield seen
        before = seen
        await pilot.press(key)


# ---- going through it ----


@pytest.mark.parametrize("keys", [("pageup", "pagedown"), ("up", "down")])
def test_every_line_can_be_reached_by_keys(keys: tuple[str, str]) -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        chat.transcript.show(talk(12, paragraphs=17))
        wanted = [f"t{one * 100 + at:04}" for one in range(1, 12, 2) for at in range(17)]
        await pilot.press("shift+tab")
        for key, order in ((keys[0], wanted[::-1]), (keys[1], wanted)):
            found: list[str] = []
            async for seen in pages(pilot, chat, key):
                tags = TAG.findall(seen)
                found += [tag for tag in (tags if order is wanted else tags[::-1]) if tag not in found]
            assert found == order

    play(scene)


def test_the_wheel_and_the_current_message() -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        transcript = chat.transcript
        transcript.show(talk(10))
        assert transcript.current == 9
        for _ in range(40):
            transcript.post_message(wheel(transcript, events.MouseScrollUp))
        await until(pilot, lambda: transcript.current < 7 and not transcript.message_queue_size)
        await pilot.pause()
        assert transcript.current_turn
        tags = set(TAG.findall(drawn(chat)))
        assert tags & set(TAG.findall(transcript.current_turn.message.text))
        top = transcript.scroll_offset.y
        transcript.post_message(wheel(transcript, events.MouseScrollDown))
        await until(pilot, lambda: transcript.scroll_offset.y > top)

    play(scene)


def test_what_is_seen_stays_while_messages_far_away_are_made() -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        transcript = chat.transcript
        many = [turn(one, "assistant", f"t{one:04}\n\n" + "- a line\n" * 30 + "$$x$$\n" * 5) for one in range(80)]
        transcript.show(many, at=40)
        await pilot.pause()
        guessed, seen = transcript.max_scroll_y, drawn(chat)
        assert "t0040" in seen.splitlines()[1]
        await still(pilot, chat)
        assert transcript.max_scroll_y != guessed
        assert drawn(chat) == seen
        await pilot.press("shift+tab", "pageup", "pagedown")
        assert [line.strip("▌ ") for line in drawn(chat).splitlines()] == [line.strip() for line in seen.splitlines()]

    play(scene)


# ---- what can be done with a message ----


def test_copy_is_clicked_in_a_message_that_is_not_the_current_one() -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        two = "\n\n".join(CODE.format(one) for one in ("'first'", "'second'"))
        thought = turn(2, "assistant", CODE.format("'said'"), thinking=CODE.format("'thought'"))
        chat.transcript.show([turn(1, "assistant", two), thought, turn(3, "user", "And?")])
        await pilot.pause()
        await pilot.click(Transcript, offset=(10, row(chat, "▸ Thought")))
        await until(pilot, lambda: "'thought'" in drawn(chat))
        for text in ("first", "said", "thought", "second"):
            at = row(chat, text) - 1
            column = drawn(chat).splitlines()[at].index("copy")
            await pilot.click(Transcript, offset=(column, at))
            await until(pilot, lambda text=text: pilot.app.clipboard == f"print('{text}')")  # type: ignore[misc]

    play(scene, size=(80, 40))


@pytest.mark.parametrize("follows", [True, False])
def test_unfolding_thinking_keeps_its_head_in_place(follows: bool) -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        answer = turn(50, "assistant", "\n\n".join("short" for _ in range(4)), thinking=tagged(5000, 12))
        chat.transcript.show([*talk(6), answer, *([] if follows else talk(6))], at=None if follows else 50)
        await pilot.pause()
        before = row(chat, "▸ Thought")
        await pilot.click(Transcript, offset=(6, before))
        await until(pilot, lambda: "▾ Thought" in drawn(chat))
        assert row(chat, "▾ Thought") == before
        await pilot.press("t")
        await until(pilot, lambda: "▸ Thought" in drawn(chat))
        assert row(chat, "▸ Thought") == before

    play(scene)


def test_folding_thinking_that_is_above_keeps_the_answer_in_place() -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        chat.transcript.show([*talk(4), turn(50, "assistant", tagged(7000, 12), thinking=tagged(5000, 12))])
        await pilot.press("shift+tab", "t", "end", "up", "up")
        seen = drawn(chat)
        assert "t70" in seen
        for _ in range(2):
            await pilot.press("t")
            await pilot.pause()
            assert drawn(chat) == seen

    play(scene)


def test_the_source_is_shown_in_the_same_place() -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        chat.transcript.show([*talk(4), turn(50, "assistant", "**bold**\n\n" * 4), *talk(4)], at=50)
        await pilot.press("shift+tab", "s")
        await until(pilot, lambda: "**bold**" in drawn(chat))
        assert "phi-4" in drawn(chat).splitlines()[0]
        await pilot.press("s")
        await until(pilot, lambda: "**bold**" not in drawn(chat))

    play(scene)


def test_another_theme_changes_colours_and_nothing_else() -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        chat.transcript.show([*talk(8), turn(50, "assistant", CODE.format(1))])
        await pilot.press("shift+tab", "pageup")
        seen, colours = drawn(chat), colours_of(chat)
        await pilot.press("f10")
        await until(pilot, lambda: colours_of(chat) != colours)
        assert not colours_of(chat) & colours
        assert drawn(chat) == seen
        await pilot.press("f10")
        await until(pilot, lambda: colours_of(chat) == colours)

    play(scene)


def colours_of(chat: ChatScreen) -> set[str]:
    """The colours of the ground."""
    lines = [chat.transcript.render_line(y) for y in range(chat.transcript.size.height)]
    return {str(segment.style.bgcolor) for line in lines for segment in line if segment.style and segment.style.bgcolor}


# ---- selecting ----


def highlighted(chat: ChatScreen) -> str:
    """What is shown as selected, without the gutter."""
    ground = chat.get_component_rich_style("screen--selection").bgcolor
    lines = []
    for y in range(chat.transcript.size.height):
        strip = chat.transcript.render_line(y)
        texts = [segment.text for segment in strip if segment.style and segment.style.bgcolor == ground]
        lines.append("".join(texts).rstrip())
    return "\n".join(lines).strip("\n")


async def drag(pilot: Pilot[None], start: tuple[int, int], end: tuple[int, int]) -> None:
    await pilot.mouse_down(Transcript, offset=start)
    for offset in ((end[0] - 1, end[1]), end):
        await pilot.hover(Transcript, offset=offset)
    await pilot.mouse_up(Transcript, offset=end)
    await pilot.pause()


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ((4, 1), (9, 1)),  # inside wide characters
        ((3, 1), (20, 5)),  # across messages
        ((20, 5), (3, 1)),  # upwards
        ((0, 2), (6, 4)),  # from a blank line's gutter
        ((30, 2), (70, 6)),  # from behind a blank line to behind a line
        ((5, 4), (40, 18)),  # to below the last message
    ],
)
def test_what_is_highlighted_is_what_is_copied(start: tuple[int, int], end: tuple[int, int]) -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        wide = "日本語のテキスト and 한국어"
        chat.transcript.show(
            [turn(1, "user", wide), turn(2, "assistant", f"**{wide}** and more"), turn(3, "user", "x")]
        )
        await pilot.pause()
        await drag(pilot, start, end)
        text = chat.get_selected_text()
        assert text
        assert text.strip("\n") == highlighted(chat)

    play(scene)


def test_a_selection_keeps_its_text_while_messages_far_away_are_made() -> None:
    async def scene(pilot: Pilot[None], chat: ChatScreen) -> None:
        chat.transcript.show(talk(60, paragraphs=9), at=31)
        await pilot.pause()
        await drag(pilot, (4, 2), (30, 9))
        text = chat.get_selected_text()
        assert text
        await still(pilot, chat)
        assert chat.get_selected_text() == text
        assert highlighted(chat) == text.strip("\n")

    play(scene)
