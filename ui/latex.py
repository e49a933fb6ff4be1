"""A LaTeX formula as a small tree of ours. pylatexenc parses it and knows most symbols; nothing is ever expanded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from ui import notation


class Unreadable(Exception):  # a signal to show the source, not a fault
    """Not a formula that can be set."""


@dataclass(frozen=True)
class Group:
    """What stands in braces."""

    items: list[Item]


@dataclass(frozen=True)
class Macro:
    """A macro with the contents of its arguments; None for an optional one that is absent."""

    name: str
    arguments: list[list[Item] | None]

    def argument(self, number: int) -> list[Item]:
        """Unreadable: a macro that was itself taken for an argument has none (\\frac\\frac)."""
        if not 0 <= number < len(self.arguments):
            raise Unreadable
        return self.arguments[number] or []


@dataclass(frozen=True)
class Environment:
    """`columns`: what an array says of its columns, as in cc|c."""

    name: str
    items: list[Item]
    columns: str = ""


Item = str | Group | Macro | Environment  # a str is one character


def parse(latex: str) -> list[Item]:
    """The items of a formula; Unreadable where the parser finds a fault."""
    from pylatexenc import latexwalker  # type: ignore[import-untyped]

    # A bare % is a percent sign in a chat, not the beginning of a comment.
    source = re.sub(r"(?<!\\)%", r"\\%", latex)
    walker = latexwalker.LatexWalker(source, latex_context=_grammar(), tolerant_parsing=False)
    try:
        nodes = walker.get_latex_nodes(parsing_state=walker.make_parsing_state(in_math_mode=True))[0]
    # Written for documents: beside its own errors, IndexError and the like come out for broken input.
    except (latexwalker.LatexWalkerError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unreadable from error
    return _items(nodes)


def symbol(name: str) -> str | None:
    """The text of a macro without arguments; None for an unknown one."""
    return notation.SYMBOLS[name] if name in notation.SYMBOLS else _known(name)


def name_of(item: Item | None) -> str | None:
    """A macro's name; None for anything else."""
    return item.name if isinstance(item, Macro) else None


def contents(item: Item) -> list[Item]:
    """What is in a group; anything else is its own content."""
    return item.items if isinstance(item, Group) else [item]


def cells(items: list[Item]) -> list[list[list[Item]]]:
    """Items cut into lines at \\\\ and into cells at &, without empty lines."""
    table: list[list[list[Item]]] = [[[]]]
    for item in items:
        if item == "&":
            table[-1].append([])
        elif name_of(item) in ("\\", "cr", "newline"):
            table.append([[]])
        elif name_of(item) not in ("hline", "nonumber", "notag"):
            table[-1][-1].append(item)
    kept = [line for line in table if any(not isinstance(i, str) or not i.isspace() for cell in line for i in cell)]
    return kept or [[[]]]


@cache
def _grammar() -> Any:
    """Which macros take which arguments; all others take none and are symbols."""
    from pylatexenc import macrospec

    plain = macrospec.MacroStandardArgsParser("{", args_math_mode=[False])
    # `[C,D]` on the line after `\\` is not its optional argument.
    newline = macrospec.MacroStandardArgsParser("*[", optional_arg_no_space=True)
    macros = [macrospec.MacroSpec(name, spec) for spec, names in notation.ARGUMENTS.items() for name in names.split()]
    macros += [macrospec.MacroSpec(name, args_parser=plain) for name in notation.TEXTS]
    macros.append(macrospec.MacroSpec("\\", args_parser=newline))
    specs = (("array", "[{"), ("alignat", "{"), ("alignat*", "{"))
    grammar = macrospec.LatexContextDb()
    grammar.add_context_category(
        "formulas",
        macros=macros,
        environments=[macrospec.EnvironmentSpec(name, spec) for name, spec in specs],
        specials=[],
    )
    grammar.set_unknown_macro_spec(macrospec.MacroSpec(""))
    grammar.set_unknown_environment_spec(macrospec.EnvironmentSpec(""))
    return grammar


def lettered(text: str, alphabet: str) -> str:
    """Text in another alphabet of mathematics: doublestruck, script, fraktur, bold."""
    from pylatexenc.latex2text import fmt_math_text_style  # type: ignore[import-untyped]

    return str(fmt_math_text_style(text, alphabet))


@cache
def _symbols() -> Any:
    from pylatexenc.latex2text import get_default_latex_context_db

    return get_default_latex_context_db()


def _known(name: str) -> str | None:
    """pylatexenc's own text for a macro: only where it is a sign, never a template or something to be computed."""
    spec = _symbols().get_macro_spec(name)
    text = getattr(spec, "simplify_repl", None)
    return text if isinstance(text, str) and text and not re.search("[%<\n]", text) else None


def _items(nodes: list[Any]) -> list[Item]:
    """Nodes of the parser as items: characters one by one, everything else whole."""
    from pylatexenc import latexwalker as lw

    items: list[Item] = []
    for node in nodes:
        if isinstance(node, lw.LatexCharsNode):
            items += node.chars
        elif isinstance(node, lw.LatexMathNode):
            items.append(Macro("ensuremath", [_items(node.nodelist)]))
        elif isinstance(node, lw.LatexGroupNode):
            items.append(Group(_items(node.nodelist)))
        elif isinstance(node, lw.LatexMacroNode):
            items.append(Macro(node.macroname, _arguments(node)))
            items += " " if node.macro_post_space else ""
        elif isinstance(node, lw.LatexEnvironmentNode):
            columns = "".join(i for i in (_arguments(node) or [None])[-1] or [] if isinstance(i, str))
            items.append(Environment(node.environmentname, _items(node.nodelist), columns))
    return items


def _arguments(node: Any) -> list[list[Item] | None]:
    parsed = node.nodeargd.argnlist if node.nodeargd else []
    return [None if argument is None else _inside(_items([argument])) for argument in parsed]


def _inside(items: list[Item]) -> list[Item]:
    return contents(items[0]) if len(items) == 1 else items
