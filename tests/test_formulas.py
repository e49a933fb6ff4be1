# ruff: noqa: RUF001  (signs that look like letters are what this is about)
"""LaTeX in answers as Unicode text: what it looks like, where it is found, and what hostile text does to it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4local.printing import printable_lines
from ui.formulas import LONGEST, display, escaped, inline, split, to_text

INLINE = [
    (r"\frac{a+b}{2}", "(a+b)/2"),
    (r"\frac{1}{1+\frac{1}{x}}", "1/(1+1/x)"),
    (r"\frac12", "1/2"),
    (r"-\frac{3}{4}x", "-(3/4)x"),
    (r"2\frac{1}{3}", "2 1/3"),
    (r"\frac{n!}{k!(n-k)!}", "n!/(k!(n-k)!)"),
    (r"\frac{1}{2x}", "1/(2x)"),
    (r"\frac{1}{a(b+c)} + \frac{1}{f(x)}", "1/(a(b+c)) + 1/f(x)"),
    (r"x_{i+1}^2", "xᵢ₊₁²"),
    (r"x_{\max}, a_{i,j}, 2^{2^n}", "xₘₐₓ, a_(i,j), 2^(2ⁿ)"),
    (r"\sqrt{x^2+1}", "√(x²+1)"),
    (r"\sqrt[3]{27} + \sqrt[n]{x}", "∛27 + ⁿ√x"),
    (r"\sqrt{2}x", "√2 x"),
    (r"x=\frac{-b\pm\sqrt{b^2-4ac}}{2a}", "x = (-b±√(b²-4ac))/(2a)"),
    (r"\sum_{i=1}^{n} i^2", "∑ᵢ₌₁ⁿ i²"),
    (r"\frac1n \sum_{i=1}^n x_i", "(1/n) ∑ᵢ₌₁ⁿ xᵢ"),
    (r"\prod_{p\text{ prime}} \frac{1}{1-p^{-s}}", "∏_(p prime) 1/(1-p⁻ˢ)"),
    (r"\int_0^\infty e^{-x^2}\,dx", "∫₀^∞ e^(-x²) dx"),
    (r"\int_a^b f'(x) dx = f(b) - f(a)", "∫ₐᵇ f′(x) dx = f(b) - f(a)"),
    (r"\lim_{x\to 0}\frac{\sin x}{x}=1", "lim_(x→0) (sin x)/x = 1"),
    (r"\lim_{n\to\infty}\left(1+\frac1n\right)^n=e", "lim_(n→∞) (1 + 1/n)ⁿ = e"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "(1, 2; 3, 4)"),
    (r"f(x)=\begin{cases} x, & \text{if } x \ge 0 \\ -x & \text{otherwise} \end{cases}",
     "f(x) = {x, if x ≥ 0; -x, otherwise}"),
    (r"\begin{aligned} a&=b\\ &=c \end{aligned}", "a = b; = c"),
    (r"\alpha+\beta\Gamma", "α + βΓ"),
    (r"\vec{v}\cdot\hat{n} = \bar{x}", "v⃗ · n̂ = x̄"),
    (r"\overline{AB}", "A̅B̅"),
    (r"\{x \in \mathbb{R} \mid x>0\}", "{x ∈ ℝ | x > 0}"),
    (r"A\cup B\subseteq C\setminus D", "A ∪ B ⊆ C ∖ D"),
    (r"\forall x\,\exists y\colon x<y \implies \neg P \land Q", "∀x ∃y: x < y ⟹ ¬P ∧ Q"),
    (r"\binom{n}{k}", "C(n, k)"),
    (r"\boxed{x = 42}", "[ x = 42 ]"),
    (r"\left( \frac{x}{y} \right)^2", "(x/y)²"),
    (r"f''(x) + y'", "f″(x) + y′"),
    (r"\mathcal{L}(\mathbf{x})", "ℒ(𝐱)"),
    (r"9.8\ \mathrm{m/s^2}", "9.8 m/s²"),
    (r"3\,\text{cm}", "3 cm"),
    (r"2^{10} \times 3 \div 4 \cdot 5", "2¹⁰ × 3 ÷ 4 · 5"),
    (r"a \equiv b \pmod{n}", "a ≡ b (mod n)"),
    (r"7 \bmod 3", "7 mod 3"),
    (r"\lfloor x \rfloor + \lceil y\rceil", "⌊x⌋ + ⌈y⌉"),
    (r"\lvert x\rvert \le \|y\|", "|x| ≤ ‖y‖"),
    (r"|a-b|\le|a|+|b|", "|a - b| ≤ |a| + |b|"),
    (r"\frac{dy}{dx} = \frac{dy}{du} \cdot \frac{du}{dx}", "dy/dx = dy/du · du/dx"),
    (r"\frac{d}{dx} e^x", "(d/dx)eˣ"),
    (r"\frac{\partial^2 u}{\partial x^2}", "∂²u/∂x²"),
    (r"\nabla\times\mathbf{F}", "∇ × 𝐅"),
    (r"\sin^2\theta + \cos 2\theta", "sin² θ + cos 2θ"),
    (r"\tan\frac{\theta}{2} = \log_2 8", "tan(θ/2) = log₂ 8"),
    (r"e^{i\pi}+1=0", "e^(iπ) + 1 = 0"),
    (r"90^\circ + A^T A^{-1}", "90° + AᵀA⁻¹"),
    (r"x \mapsto x^2", "x ↦ x²"),
    (r"\operatorname{lcm}(a,b)", "lcm(a, b)"),
    (r"a \not= b \ne c", "a ≠ b ≠ c"),
    (r"\Delta x\to0, \triangle ABC", "Δx → 0, △ABC"),
    (r"\$5 + 50\% + 1{,}000", "$5 + 50% + 1,000"),
    (r"\foo{x} + 1", r"\foo{x} + 1"),
]  # fmt: skip

DISPLAY = [
    (r"x = \frac{-b \pm \sqrt{b^2-4ac}}{2a}", """
    -b ± √(b²-4ac)
x = ──────────────
          2a"""),
    (r"\frac{1}{1+\frac{1}{x}}", """
   1
───────
     1
 1 + ─
     x"""),
    (r"\sum_{n=1}^\infty \frac{1}{n^2} = \frac{\pi^2}{6}", """
 ∞  1    π²
 ∑  ── = ──
n=1 n²   6"""),
    (r"\lim_{x\to 0} \frac{\sin x}{x} = 1", """
    sin x
lim ───── = 1
x→0   x"""),
    (r"\int_0^\infty e^{-x^2}\,dx", """
∞
∫ e^(-x²) dx
0"""),
    (r"A = \begin{bmatrix} 1 & 0 & 0 \\ 0 & -1 & 0 \\ 0 & 0 & 1 \end{bmatrix}", """
    ⎡1  0   0⎤
A = ⎢0  -1  0⎥
    ⎣0  0   1⎦"""),
    (r"f(x)=\begin{cases} x & \text{if } x \ge 0 \\ -x & \text{otherwise} \end{cases}", """
       ⎧ x   if x ≥ 0
f(x) = ⎨
       ⎩ -x  otherwise"""),
    (r"\begin{align} (a+b)^2 &= a^2 + 2ab + b^2 \\ &\ge 4ab \end{align}", """
(a + b)² = a² + 2ab + b²
         ≥ 4ab"""),
    (r"\left(\frac{a}{b}\right)^2 \binom{n}{k}", """
⎛a⎞²⎛n⎞
⎜─⎟ ⎜ ⎟
⎝b⎠ ⎝k⎠"""),
    (r"\boxed{\frac{1}{2}}", """
┌───┐
│ 1 │
│ ─ │
│ 2 │
└───┘"""),
    (r"\sqrt{\frac{a}{b}}", """
 ┌──
 │ a
 │ ─
╲│ b"""),
    (r"\left[\begin{array}{cc|c} 1 & 2 & 3 \\ 4 & 5 & 6 \end{array}\right]", """
⎡1  2 │ 3⎤
⎣4  5 │ 6⎦"""),
    (r"\underbrace{1+\dots+1}_{n\text{ times}}", """
1 + … + 1
╰───────╯
 n times"""),
]  # fmt: skip


@pytest.mark.parametrize(("latex", "expected"), INLINE)
def test_a_formula_on_one_line(latex: str, expected: str) -> None:
    assert inline(latex) == expected


@pytest.mark.parametrize(("latex", "expected"), DISPLAY)
def test_a_formula_on_several_lines(latex: str, expected: str) -> None:
    assert "\n".join(display(latex, 80)) == expected.removeprefix("\n")


def test_a_wide_formula_falls_back_to_one_line_and_then_wraps() -> None:
    latex = r"\frac{a+b+c+d}{2} + \frac{e+f+g+h}{2} = x"
    assert len(display(latex, 33)) == 3
    assert display(r"\frac{1}{2}+\begin{pmatrix}a&b\\c&d\end{pmatrix}=M", 15) == ["1", "─ + ⎛a  b⎞ = M", "2   ⎝c  d⎠"]
    assert display(latex, 24) == ["(a+b+c+d)/2", "  + (e+f+g+h)/2 = x"]
    assert all(len(line) <= 12 for line in display("x" * 100, 12))


PIECES = [
    ("costs $5 and $10", []),
    ("from $5/$10 to 3 $ more", []),
    (r"\$x$ is no formula", []),
    ("$ x$ and $x $ and $$ $$", []),
    ("a $x$, $y$.", ["$x$", "$y$"]),
    ("$a$$b$", ["$a$", "$b$"]),
    (r"\(a\) and \[b\]", [r"\(a\)", r"\[b\]"]),
    ("$$\nx\n$$", ["$$\nx\n$$"]),
    ("`$x$` and ``a ` $y$`` and $z$", ["$z$"]),
    ("```\n$x$\n```\n$y$", ["$y$"]),
    ("~~~tex\n$x$\n```\n$x$\n~~~\n$y$", ["$y$"]),
    ("1. a\n   ```\n   $x$\n   ```\n   $y$", ["$y$"]),
    ("text\n\n    $x$\n\n    $y$\n\n$z$", ["$z$"]),
    ("- item\n\n    $x$ continues it\n\n        $code$", ["$x$"]),
    ("text\n    $x$ continues it", ["$x$"]),
    ("unclosed $x + ", []),
    ("unclosed $$x +\n", []),
    (r"unclosed \[x + ", []),
    ("$x\n\ny$", []),
    ("```\n$x$", []),
    (r"so \boxed{\frac{1}{2}} it is", [r"\boxed{\frac{1}{2}}"]),
    (r"\begin{align}a&=b\end{align} and \begin{verbatim}$x\end{verbatim}", [r"\begin{align}a&=b\end{align}"]),
]


@pytest.mark.parametrize(("markdown", "formulas"), PIECES)
def test_formulas_are_found_where_they_are(markdown: str, formulas: list[str]) -> None:
    assert [part.source for part in split(markdown) if part.kind != "text"] == formulas


def test_the_rest_of_an_answer_stays_as_it_is() -> None:
    before = (
        "1. **So** $a*b*c$:\r\n   \\[ \\frac{1}{2} \\]\n   then $$x_1$$ and `$code$` $5.\n\n"
        "> $$\n> y\n> $$\n\n| a | $$x|y$$ |\n"
    )
    after = (
        "1. **So** a \\* b \\* c:\r\n   ```text\n   1\n   ─\n   2\n   ```\n   then \n   ```text\n   x₁\n   ```\n"
        "    and `$code$` $5.\n\n> ```text\n> y\n> ```\n\n| a | x\\|y |\n"
    )
    assert to_text(before, 80) == after


def test_a_formula_does_not_act_as_markdown() -> None:
    from markdown_it import MarkdownIt

    signs = r"*a* _b_ [c](d) <b> &amp; `e` ~~f~~ \g !["
    for sign in (signs, "- x", "+ x", "# x", "1. x", "1) x", "> x", "===", "---"):
        tokens = MarkdownIt().enable("strikethrough").parse(escaped(sign, at_start=True))
        assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
        assert "".join(child.content for child in tokens[1].children or []) == sign


def test_a_source_that_holds_backticks_stays_in_its_block() -> None:
    assert to_text("$$\\text{```}{$$", 40).startswith("````text\n$$\\text{```}{$$\n````")


@pytest.mark.parametrize(
    "latex", [r"\frac{1", "a}", r"\frac\frac", "x^", r"\left( x", r"\begin{pmatrix} 1", "$", "a $ b"]
)
def test_what_cannot_be_read_is_its_source(latex: str) -> None:
    assert inline(latex) == latex
    assert to_text(f"\\[{latex}\\]", 80) == f"```text\n\\[{latex}\\]\n```"


HOSTILE = {
    "fractions": "$" + r"\frac" * 200_000 + "$",
    "braces": "$" + "{" * 10_000 + "}" * 10_000 + "$",
    "dollars": "$a " * 330_000,
    "only dollars": "$" * 200_000,
    "backticks": "".join("`" * (n % 50 + 1) + " " for n in range(40_000)),
    "boxes": r"\boxed{" * 140_000,
    "openings": r"\(a " * 250_000,
    "begins": r"\begin{align}" * 70_000,
    "backslashes": "\\" * 200_000,
    "brackets": "$$" + r"\sqrt[" * 600 + "$$",
    "many formulas": r"$\frac{a}{b}$ " * 20_000,
    "quotations": "> " * 100_000 + "$$" + r"x\\" * 900 + "x$$",
    "long rows": r"$$\begin{matrix}" + "1&" * 900 + r"\\" + r"1\\" * 500 + r"\end{matrix}$$",
    "roots": "$$" + r"\sqrt{" * 49 + "x" + "}" * 49 + "$$",
    "nested fractions": "$$" + r"\frac{\frac{1}{2}}{" * 24 + "x" + "}" * 24 + "$$",
    "scripts": "$x" + "^x" * 1_900 + "$",
    "accents": "$" + r"\hat{" * 49 + "x" * 3_000 + "}" * 49 + "$",
    "definitions": r"$\newcommand{\a}{\b\b}\newcommand{\b}{\c\c}\a$ and $\def\a{\a\a}\a$ and $\input{/etc/passwd}$",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_bounded(name: str) -> None:
    markdown = HOSTILE[name]
    started = time.monotonic()
    text = to_text(markdown, 80)
    assert time.monotonic() - started < 10
    assert len(text) < 4 * len(markdown) + 100_000
    assert "".join(part.source for part in split(markdown)) == markdown


def test_nothing_is_expanded_or_read() -> None:
    assert inline(r"\newcommand{\a}{\b\b}\a") == r"\newcommand{\a}{\b\b}\a"
    assert inline(r"\input{/etc/hostname}") == r"\input{/etc/hostname}"
    assert inline("x" * (LONGEST + 1)) == "x" * (LONGEST + 1)
    assert inline("{" * 51 + "x" + "}" * 51).startswith("{{{")


_SIGNS = list("$`x1{}\\_^&' |~%[]-") + ["$$", "```", "\n", "\n\n", "    ", "- ", "> ", "\r", "\t", "中"]
_SIGNS += [
    "\x1b[31m",
    "\u202e",
    "\x00",
    "\\\\",
    r"\(",
    r"\)",
    r"\[",
    r"\]",
    r"\left(",
    r"\right)",
    r"\text{",
    r"\boxed{",
]
_SIGNS += [
    r"\frac",
    r"\sqrt",
    r"\sum",
    r"\hat",
    r"\not",
    r"\limits",
    r"\overset",
    r"\underbrace{",
    r"\operatorname",
    r"\tag",
]
_SIGNS += [
    r"\pmod",
    r"\begin{cases}",
    r"\end{cases}",
    r"\begin{array}{c|c}",
    r"\end{array}",
    r"\begin{align}",
    r"\end{align}",
]
_TEXT = st.lists(st.sampled_from(_SIGNS) | st.text(max_size=3)).map("".join)


@given(_TEXT)
def test_any_text_is_split_without_loss(markdown: str) -> None:
    parts = split(markdown)
    assert "".join(part.source for part in parts) == markdown
    assert all(part.source.startswith(part.opening) and part.source.endswith(part.closing) for part in parts)
    to_text(markdown, 40)


@given(_TEXT)
def test_any_formula_is_shown_without_controls(latex: str) -> None:
    line = inline(latex)
    lines = display(latex, 40)
    for text in (line, *lines):
        assert text == printable_lines(text)
        assert not set("\n\t\r") & set(text)


def test_the_parser_is_loaded_when_a_formula_comes() -> None:
    code = (
        "import sys, ui.formulas as f; f.split('$x$'); print('pylatexenc' in sys.modules); "
        "f.inline('x'); print('pylatexenc' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]
