r"""Chats that the pictures of `docs/` show: invented, and the same every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from phi4local.chats import Attachment, Chat, Message
from phi4local.history import History

LABEL = "phi-4-reasoning:Q4_K_M"
STATS = {
    "model": LABEL,
    "prompt_tokens": 1_184,
    "cached_tokens": 912,
    "generation_tokens": 742,
    "prompt_tps": 1_312.0,
    "generation_tps": 31.9,
    "ttft_seconds": 0.34,
    "reason": "stop",
}

NEWTON = (
    "Why is Newton's method so quick at square roots? Show the step, and a few lines of Python.",
    r"""## Newton's step

For $\sqrt{a}$, follow the tangent of $f(x) = x^2 - a$ down to its zero:

$$x_{n+1} = x_n - \frac{f(x_n)}{f'(x_n)} = \frac{1}{2}\left(x_n + \frac{a}{x_n}\right)$$

- The number of right digits **doubles**: $\varepsilon_{n+1} \approx \varepsilon_n^2 / (2\sqrt{a})$.
- Any start $x_0 > 0$ will do.

```python
def root(a: float, digits: int = 12) -> float:
    x = max(a, 1.0)  # above the root, so it only falls
    while abs(x * x - a) > a * 10**-digits:
        x = (x + a / x) / 2
    return x
```
""",
)
NEWTON_THOUGHT = "The user wants to know why it converges so fast. " * 37

FORMULAS = r"""### On a line

| written | shown | written | shown |
|---|---|---|---|
| `\frac{a+b}{2}` | $\frac{a+b}{2}$ | `\alpha+\beta\Gamma` | $\alpha+\beta\Gamma$ |
| `x_{i+1}^2` | $x_{i+1}^2$ | `e^{i\pi}+1=0` | $e^{i\pi}+1=0$ |
| `\sqrt[3]{27}` | $\sqrt[3]{27}$ | `\vec v\cdot\hat n` | $\vec v\cdot\hat n$ |
| `a \equiv b \pmod{n}` | $a \equiv b \pmod{n}$ | `x\in\mathbb{R}` | $x\in\mathbb{R}$ |
| `\lfloor x\rfloor` | $\lfloor x\rfloor$ | `A\cup B\subseteq C` | $A\cup B\subseteq C$ |
| `\sin^2\theta` | $\sin^2\theta$ | `\nabla\times\mathbf{F}` | $\nabla\times\mathbf{F}$ |
| `9.8\ \mathrm{m/s^2}` | $9.8\ \mathrm{m/s^2}$ | `\neg P \land Q` | $\neg P \land Q$ |

### On lines of their own

$$x = \frac{-b \pm \sqrt{b^2-4ac}}{2a} \qquad \varphi = 1 + \cfrac{1}{1 + \cfrac{1}{1 + \cdots}}$$

$$\sum_{n=1}^{\infty} \frac{1}{n^2} = \frac{\pi^2}{6} \qquad
\prod_{p} \frac{1}{1 - p^{-s}} = \zeta(s) \qquad \lim_{x \to 0} \frac{\sin x}{x} = 1$$

$$\int_{-\infty}^{\infty} e^{-x^2}\,dx = \sqrt{\pi} \qquad \oint_{\gamma} \frac{f(z)}{z - a}\,dz = 2\pi i\, f(a)$$

$$|x| = \begin{cases} x & \text{if } x \ge 0 \\ -x & \text{otherwise} \end{cases} \qquad
R = \begin{pmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta \end{pmatrix}$$

$$\det \begin{vmatrix} a & b \\ c & d \end{vmatrix} = ad - bc \qquad
\left[\begin{array}{cc|c} 1 & 2 & 3 \\ 0 & 1 & 4 \end{array}\right]$$

$$P(A \mid B) = \frac{P(B \mid A)\,P(A)}{P(B)} \qquad \binom{n}{k} = \frac{n!}{k!\,(n-k)!}$$

$$\begin{aligned} (a+b)^2 &= a^2 + 2ab + b^2 \\ &\ge 4ab \end{aligned}$$

$$\frac{\partial u}{\partial t} = \kappa\, \frac{\partial^2 u}{\partial x^2} \qquad \boxed{x = \frac{7}{2}}$$
"""

REPORT = Attachment("measurements.csv", 48_213, 6_120, "day,kelvin\n")
BRANCHES = (
    ("Which of these days was the coldest?", "The 14th of January, with 251.3 K."),
    (
        "Which week was the coldest on average?",
        "The **second week of January**: 254.9 K on average, 2.1 K below the week after it.\n",
    ),
    (
        "Which week was the coldest, and by how much? A table, please.",
        "| week | mean | below the next |\n|---|---:|---:|\n| 8 to 14 January | 254.9 K | 2.1 K |\n"
        "| 15 to 21 January | 257.0 K | 0.4 K |\n| 1 to 7 January | 257.4 K |  |\n\n"
        "The week with the single coldest day is also the coldest on average.\n",
    ),
)

LIST = (  # title, folder, model, days before, its messages
    ("Newton's method for square roots", "Mathematics", LABEL, 0, NEWTON),
    (
        "Rotations in space",
        "Mathematics",
        LABEL,
        0,
        (
            "How do I turn a vector around an axis?",
            "Multiply it by the rotation matrix of that axis; its columns are the turned unit vectors.",
            "And two of them, one after the other?",
            "Multiply the matrices. The matrix of the second rotation stands on the left: it acts last.",
        ),
    ),
    (
        "Least squares without a library",
        "Mathematics",
        "phi-4:Q6_K",
        1,
        (
            "Fit a line to 40 points by hand?",
            "Solve the normal equations: the matrix has two rows and two columns, so its inverse is short.",
        ),
    ),
    (
        "Film titles for a quiz",
        "",
        "phi-4-mini:Q8_0",
        3,
        ("Ten films of the nineties, please", "The Matrix (1999), Fargo (1996), Heat (1995), …"),
    ),
    ("Letter to the landlord", "Letters", "phi-4:Q6_K", 9, ("Make this politer", "Dear Ms Moser, …")),
)


def message(number: int, parent: int | None, text: str, **facts: Any) -> Message:
    """One of a chat; the odd ones are the user's."""
    role: Any = "user" if number % 2 else "assistant"
    stats = None if number % 2 else facts.pop("stats", STATS)
    given: dict[str, Any] = {"thinking": "", "thinking_seconds": 0.0, "state": "complete", "attachments": ()}
    given |= {"created": _day(0), "stats": stats} | facts
    return Message(number, 1, parent, role, text, **given)


def keep_chat(history: History, title: str, messages: Sequence[Message], **facts: Any) -> int:
    """A chat that ends with the last of these messages."""
    about: dict[str, Any] = {"pinned": False, "folder": "", "model": LABEL, "system": "", "sampling": {}} | facts
    days = {"created": _day(0), "changed": _day(0)}
    return history.put(Chat(0, title, leaf=messages[-1].id, **days | about), messages).id


def keep_list(history: History) -> None:
    """Some chats of several days."""
    for number, (title, folder, model, days, said) in enumerate(LIST):
        created = _day(days)
        messages = [message(at, at - 1 or None, text, created=created) for at, text in enumerate(said, 1)]
        about = {"folder": folder, "model": model, "created": created, "changed": created, "pinned": number == 3}
        keep_chat(history, title, messages, **about)


def _day(before: int) -> str:
    return f"2026-03-{14 - before:02}T{14 - before:02}:26:00Z"
