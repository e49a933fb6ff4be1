"""What `bench.tui` runs in a terminal: the chat with an engine that only talks, and what it is compared with.

    python -m bench.tui_child NAME [COUNT]

NAME is `chat` or `markdown`: the chat screen, or Textual's own Markdown widget above a TextArea, which begins to grow
at Ctrl-N; with COUNT that many of them are mounted instead. `BENCH_PROFILE`: a file for what cProfile finds.
"""

from __future__ import annotations

import cProfile
import os
import re
import sys
import time

TOKENS, PACE_SECONDS = 3_000, 0.01
LAST = "END-OF-ALL"  # the last word of what is said

_PARTS = (
    "## {n}. Where the time goes\n\n",
    "{tag} A **transformer** spends most of its time in matrix products, so the memory that feeds them decides how many"
    " tokens come in a second. With $n$ weights of `4.5` bits each, one token reads $\\frac{{4.5 n}}{{8}}$ bytes;"
    " the rest is *small* beside that, as long as the context is short.\n\n",
    "{tag} Three things follow from this:\n\n- fewer bits per weight make it **faster**, not only smaller;\n- a second"
    " core helps only until the memory is busy, which `lscpu` does not tell;\n  - what counts is the bandwidth $B$,\n"
    "  - and what is read at each step;\n- a batch reads the weights once for all its tokens.\n\n",
    "{tag} The attention itself is the familiar expression\n\n$$\\operatorname{{softmax}}\\left(\\frac{{Q K^\\top}}"
    "{{\\sqrt{{d_k}}}}\\right) V = \\sum_{{i=1}}^{{n}} \\alpha_i v_i$$\n\nin which $\\alpha_i \\ge 0$ sum to one.\n\n",
    "```python\nfrom dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Model:\n    weights: int\n"
    "    bits: float = 4.5\n\n    def seconds(self, bandwidth: float) -> float:\n"
    '        """How long a token takes where only memory counts."""\n'
    "        return self.weights * self.bits / 8 / bandwidth\n\n\n"
    'print(f"{{Model(14_700_000_000).seconds(80e9):.3f}} s")\n```\n\n',
    "{tag} Measured on a few machines:\n\n| machine | GB/s | tokens/s | share of the limit |\n|:--|--:|--:|:-:|\n"
    "| laptop, two channels | 76 | 8.4 | **0.91** |\n| desktop | 90 | 9.8 | 0.90 |\n| card of 24 GB | 936 | 88 |"
    " `0.78` |\n\n",
    "```bash\nphi4local pull phi-4 --build Q4_K_M\nphi4local chat phi-4 --context 8192\n```\n\n",
    "{tag} 1. First measure the memory, for instance with a large copy.\n2. Divide by the size of the file.\n3. Expect"
    " nine tenths of that, and $\\approx 3/4$ on a card.\n\n> A number without its machine is an opinion.\n\n",
)


def said(most: int, name: str = "") -> str:
    """Markdown as such a model writes it, at least `most` characters; its paragraphs are tagged `NAME.1` and so on."""
    parts: list[str] = []
    length = tag = 0
    while length < most:
        part = _PARTS[len(parts) % len(_PARTS)]
        tag += "{tag}" in part
        parts.append(part.format(n=len(parts) // len(_PARTS) + 1, tag=f"{name}.{tag:02}" if name else ""))
        length += len(parts[-1])
    return "".join(parts)


def tokens_of(text: str) -> list[str]:
    """In pieces about as long as tokens are."""
    return re.findall(r" ?\w{1,5}|\n+| +|[^\w\s]", text)


def answer() -> list[str]:
    """An answer of `TOKENS` pieces."""
    pieces = tokens_of(said(TOKENS * 6))[: TOKENS - 4]
    return [*pieces, "\n\n", "```\n\n" if "".join(pieces).count("```") % 2 else " ", f"{LAST}", "."]


def run_chat() -> None:
    from tests.fakes import FakeEngine, loads
    from ui.app import ChatApp
    from ui.told import ModelChoice

    engine = FakeEngine(lambda _: answer(), seconds=PACE_SECONDS, context_tokens=16_384)
    app = ChatApp(ModelChoice("phi-4:Q4_K_M"), load=loads(engine))
    app.run()


def run_markdown(count: int) -> None:
    import asyncio

    from textual.app import App, ComposeResult
    from textual.containers import VerticalScroll
    from textual.widgets import Markdown, TextArea

    class Compared(App[None]):
        """What one would write first."""

        BINDINGS = [("ctrl+n", "begin", "Begin")]  # noqa: RUF012
        CSS = "TextArea { height: 5; }"

        def compose(self) -> ComposeResult:
            with VerticalScroll():
                yield Markdown()
            yield TextArea()

        def on_mount(self) -> None:
            self.query_one(TextArea).focus()

        def action_begin(self) -> None:
            self.run_worker(self._open() if count else self._stream())

        async def _open(self) -> None:
            view = self.query_one(VerticalScroll)
            await view.mount_all([Markdown(text) for text in chat_texts(count)])
            view.scroll_end(animate=False)
            view.focus()

        async def _stream(self) -> None:
            """The pieces of each 70 ms together, as the chat's own thread tells them."""
            self.query_one(VerticalScroll).anchor()
            stream = Markdown.get_stream(self.query_one(Markdown))
            start = time.monotonic()
            pieces, told = answer(), 0
            while told < len(pieces):
                await asyncio.sleep(0.07)
                due = min(len(pieces), int((time.monotonic() - start) / PACE_SECONDS))
                await stream.write("".join(pieces[told:due]))
                told = due
            await stream.stop()

    Compared().run()


def chat_texts(count: int) -> list[str]:
    """Questions and answers in turn, tagged `m0000.01` onwards; the last one ends with `LAST`."""
    texts = []
    for number in range(count):
        length = 800 + number * 37 % 2_200 if number % 2 else 100 + number * 13 % 300
        texts.append(said(length, f"m{number:04}") if number % 2 else question(number, length))
    texts[-1] += f"\n\n{LAST}"
    return texts


def question(number: int, length: int) -> str:
    words = f"m{number:04}.00 Why is the memory's bandwidth what decides, and how would I measure it here? "
    return (words + "I have a laptop with two channels and no card, and would like to know what to expect. " * 5)[
        :length
    ]


def main() -> None:
    name, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    profiler = cProfile.Profile() if "BENCH_PROFILE" in os.environ else None
    if profiler:
        profiler.enable()
    if name == "chat":
        run_chat()
    else:
        run_markdown(count)
    if profiler:
        profiler.disable()
        profiler.dump_stats(os.environ["BENCH_PROFILE"])


if __name__ == "__main__":
    main()
