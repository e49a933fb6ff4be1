"""How the parts of a message look: Rich styles by role. A widget makes them from its theme."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.style import Style

_MANNERS = {
    "bold": Style(bold=True),
    "italic": Style(italic=True),
    "strike": Style(strike=True),
}


@dataclass(frozen=True)
class Look:
    """One style a role; each is laid over `text`. `code_block` is the background of a listing."""

    text: Style = field(default_factory=Style)
    dim: Style = field(default_factory=lambda: Style(dim=True))
    heading: Style = field(default_factory=lambda: Style(bold=True))
    code: Style = field(default_factory=Style)
    code_block: Style = field(default_factory=Style)
    quote: Style = field(default_factory=Style)
    rule: Style = field(default_factory=lambda: Style(dim=True))
    link: Style = field(default_factory=lambda: Style(underline=True))
    formula: Style = field(default_factory=Style)
    button: Style = field(default_factory=Style)
    pygments_style: str = "monokai"

    def style(self, base: Style, roles: tuple[str, ...]) -> Style:
        """`base` with roles laid over it in their order."""
        for role in roles:
            base += _MANNERS[role] if role in _MANNERS else self.of(role)
        return base

    def of(self, role: str) -> Style:
        """The style of one role, by its name."""
        style: Style = getattr(self, role)
        return style
