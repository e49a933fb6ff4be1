# ruff: noqa: RUF001, SIM905, E501  (signs that look like letters, lists of words, and tables are what this is)
"""What formulas look like in Unicode: tables of signs, and small texts made of them. Knows no parser."""

from __future__ import annotations

import re
import unicodedata

# How many arguments a macro takes, as pylatexenc writes it: { one in braces, [ an optional one, * an optional star.
ARGUMENTS = {
    "{": (
        "hat widehat bar overline underline vec overrightarrow overleftarrow tilde widetilde dot ddot check breve mathring "
        "mathbb mathbf mathcal mathscr mathfrak boldsymbol bm pmb mathds Bbb mathrm mathit mathnormal mathsf mathtt boxed "
        "fbox overbrace underbrace pmod pod mod color label phantom hphantom vphantom mathop mathbin mathrel mathord "
        "ensuremath cancel smash substack"
    ),
    "{{": "frac dfrac tfrac cfrac nicefrac binom dbinom tbinom overset underset stackrel textcolor",
    "[{": "sqrt xrightarrow xleftarrow",
    "*{": "operatorname tag hspace vspace",
}
TEXTS = ("text", "textrm", "textit", "textbf", "textsf", "texttt", "textnormal", "textup", "mbox", "hbox", "emph")
# Words that define or load something: nothing is ever expanded, the formula is shown as it was written.
FORBIDDEN = frozenset(
    "newcommand renewcommand providecommand def edef gdef xdef let input include csname catcode require".split()
)
IGNORED = frozenset(
    "displaystyle textstyle scriptstyle scriptscriptstyle limits nolimits nonumber notag hline left right mathstrut strut "
    "allowbreak nobreak relax ! centering bf rm it Large large small boldmath / break noindent".split()
)
SPACES = {
    ",": " ",
    ":": " ",
    ";": " ",
    ">": " ",
    " ": " ",
    "quad": "  ",
    "qquad": "    ",
    "enspace": " ",
    "thinspace": " ",
}
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth ln log lg exp det dim ker deg gcd lcm arg hom "
    "Pr tr rank sgn".split()
)
LIMITS = {name: name for name in "lim max min sup inf argmax argmin".split()} | {
    "limsup": "lim sup",
    "liminf": "lim inf",
    "bigoplus": "⨁",
    "bigotimes": "⨂",
    "bigodot": "⨀",
    "bigsqcup": "⨆",
    "biguplus": "⨄",
}
# What pylatexenc's table lacks, or shows with a sign of another meaning.
SYMBOLS = {
    "{": "{", "}": "}", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "langle": "⟨", "rangle": "⟩",
    "lvert": "|", "rvert": "|", "vert": "|", "lVert": "‖", "rVert": "‖", "Vert": "‖", "|": "‖", "mid": "|", "nmid": "∤",
    "colon": ":", "land": "∧", "lor": "∨", "neg": "¬", "lnot": "¬", "implies": "⟹", "impliedby": "⟸", "iff": "⟺",
    "longrightarrow": "⟶", "longleftarrow": "⟵", "Longrightarrow": "⟹", "Longleftarrow": "⟸", "longmapsto": "⟼",
    "Longleftrightarrow": "⟺", "longleftrightarrow": "⟷", "to": "→", "gets": "←", "ne": "≠", "ldots": "…", "dots": "…",
    "dotsc": "…", "cdots": "⋯", "dotsb": "⋯", "ddots": "⋱", "vdots": "⋮", "hbar": "ℏ", "emptyset": "∅", "triangle": "△",
    "square": "□", "Box": "□", "blacksquare": "■", "qed": "∎", "prime": "′", "degree": "°", "div": "÷", "pm": "±", "mp": "∓",
    "ast": "*", "lt": "<", "gt": ">", "models": "⊨", "vDash": "⊨", "owns": "∋", "trianglelefteq": "⊴", "Re": "Re", "Im": "Im",
    "dagger": "†", "ddagger": "‡", "smallsetminus": "∖", "imath": "ı", "jmath": "ȷ", "backslash": "∖", "coloneqq": "≔",
    "bmod": "mod", "epsilon": "ε", "varepsilon": "ε", "phi": "φ", "varphi": "φ", "oiint": "∯", "iiiint": "⨌", "bigstar": "★",
    "checkmark": "✓", "surd": "√", "top": "⊤", "bot": "⊥", "aleph": "ℵ", "cdotp": "·", "ell": "ℓ", "gtrsim": "≳", "lesssim": "≲",
    "varnothing": "∅", "%": "%", "$": "$", "#": "#", "&": "&", "_": "_", "S": "§", "P": "¶", "sharp": "♯", "flat": "♭",
}  # fmt: skip
# The class of a macro whose character does not tell it.
KINDS = (
    {
        "mid": "rel",
        "bmod": "bin",
        "triangle": "ord",
        "colon": "punct",
        "setminus": "bin",
        "perp": "rel",
        "parallel": "rel",
    }
    | dict.fromkeys("langle lvert lVert".split(), "open")
    | dict.fromkeys("rangle rvert rVert".split(), "close")
)

# \\right outside its pair and the sizes that are set by hand: the bracket keeps its own height; "": its own class.
SIZED = (
    dict.fromkeys("big Big bigg Bigg".split(), "")
    | {"right": "close", "middle": "rel"}
    | {
        size + side: name
        for size in "big Big bigg Bigg".split()
        for side, name in (("l", "open"), ("r", "close"), ("m", "rel"))
    }
)

FENCES = {
    "pmatrix": ("(", ")"), "bmatrix": ("[", "]"), "Bmatrix": ("{", "}"), "vmatrix": ("|", "|"), "Vmatrix": ("‖", "‖"),
    "matrix": ("", ""), "smallmatrix": ("", ""), "array": ("", ""), "cases": ("{", ""), "dcases": ("{", ""), "rcases": ("", "}"),
}  # fmt: skip
LEFT = ("cases", "dcases", "rcases")  # columns of these begin at the left
GATHERED = ("gather", "gather*", "gathered", "multline", "multline*")
ENVIRONMENTS = (*FENCES, *GATHERED, "align", "align*", "aligned", "alignat", "alignat*", "split", "equation", "equation*",
                "eqnarray", "eqnarray*", "flalign", "flalign*", "displaymath", "math")  # fmt: skip

ALPHABETS = {
    "mathbb": "doublestruck", "mathds": "doublestruck", "Bbb": "doublestruck", "mathbf": "bold", "boldsymbol": "bold",
    "bm": "bold", "pmb": "bold", "mathcal": "script", "mathscr": "script", "mathfrak": "fraktur", "mathsf": "sans",
    "mathtt": "monospace",
}  # fmt: skip
ACCENTS = {
    "hat": "\u0302", "widehat": "\u0302", "bar": "\u0304", "overline": "\u0305", "underline": "\u0332", "vec": "\u20d7",
    "overrightarrow": "\u20d7", "overleftarrow": "\u20d6", "tilde": "\u0303", "widetilde": "\u0303", "dot": "\u0307",
    "ddot": "\u0308", "check": "\u030c", "breve": "\u0306", "mathring": "\u030a",
}  # fmt: skip

_UPPER = dict(zip(
    "0123456789+-=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVWαβγδεθφχ∘°⊤′*†",
    "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂᵅᵝᵞᵟᵋᶿᵠᵡ°°ᵀ′*†",
    strict=True,
))  # fmt: skip
_LOWER = dict(zip("0123456789+-=()aehijklmnoprstuvxβγρφχ", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵪ", strict=True))
_ROOTS = {"": "√", "2": "√", "3": "∛", "4": "∜"}
ROOT_SIGNS = ("√", "∛", "∜")
_PRIMES = ("", "′", "″", "‴", "⁗")

_BINARY = frozenset("+-*±∓×÷·∗∘∙∪∩∧∨⊕⊗⊖⊙⊘∖⋆†‡⊎⊔⊓⊞⊠⋅△▽⋉⋊")
_BIG = frozenset("∑∏∐∫∬∭∮∯∰⨌⋃⋂⋁⋀⨁⨂⨀⨄⨆")
# Arrows and relations of the blocks "Arrows", "Mathematical Operators" and their supplements.
_RELATIONS = ((0x2190, 0x21FF), (0x2208, 0x220D), (0x221D, 0x221D), (0x2223, 0x2226), (0x2234, 0x223F), (0x2241, 0x228B),
              (0x228F, 0x2292), (0x22A2, 0x22A3), (0x22A6, 0x22B8), (0x22C8, 0x22C8), (0x22CD, 0x22CD), (0x22D0, 0x22D1),
              (0x22D6, 0x22ED), (0x27F0, 0x27FF), (0x2900, 0x297F), (0x2A7D, 0x2AFF))  # fmt: skip
_MARKS = "\u0300-\u036f\u20d0-\u20ff"
_RAISED = re.escape("".join(sorted({*_UPPER.values(), *_LOWER.values(), *"″‴⁗!"})))
_SCRIPTED = rf"(?:[{_RAISED}]|[\^_](?:[^\W_]|∞|\([^()]*\)))*"
_UNIT = re.compile(rf"(?:[√∛∜]?(?:\d+(?:[.,]\d+)*|[^\W\d_][{_MARKS}]*|[∞ℵ]){_SCRIPTED}|\\?[^\W\d_]{{3,}})")
# f(x) and sin²(x) are one thing behind a slash; in x(y+1) and k!(n-k)! two are multiplied.
_CALL = re.compile(r"(?:[fghFGHPQΓΦφψζ][′″‴]*(?:⁻¹)?|[^\W\d_]{2,6}|[√∛∜])?(?=[(⌊⌈⟨])")


def kind(text: str) -> str:
    """The class of a sign, as TeX has them."""
    sign = text[:1]
    if sign in _BINARY:
        return "bin"
    if sign in "=<>:" or any(low <= ord(sign) <= high for low, high in _RELATIONS):
        return "rel"
    if sign in _BIG:
        return "big"
    for name, signs in (("punct", ",;"), ("open", "([{⌊⌈⟨"), ("close", ")]}⌋⌉⟩!")):
        if sign in signs:
            return name
    return "ord"


def primes(count: int) -> str:
    return _PRIMES[count] if count < len(_PRIMES) else "′" * count


def superscript(text: str) -> str:
    """Raised where Unicode has all the letters, else ^x or ^(x+y/2)."""
    return _script(text, _UPPER, "^")


def subscript(text: str) -> str:
    return _script(text, _LOWER, "_")


def _script(text: str, table: dict[str, str], mark: str) -> str:
    if all(character in table for character in text):
        return "".join(table[character] for character in text)
    base = re.sub(f"[{_MARKS}]", "", text)
    return mark + (text if len(base) == 1 or _is_group(text) else f"({text})")


def _is_group(text: str) -> bool:
    """Whether a text is one pair of parentheses and what they hold."""
    return text.startswith("(") and text.endswith(")") and _closing(text, 0) == len(text) - 1


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` is closed; -1: nowhere."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] in "([{⌊⌈⟨") - (text[at] in ")]}⌋⌉⟩")
        if not depth:
            return at
    return -1


def fraction(upper: str, lower: str) -> str:
    """A fraction on one line, with parentheses only where they are needed: a/b, (a+b)/2, 1/(2x), dy/dx."""
    derivative = upper[:1] in ("d", "∂") and lower[:1] in ("d", "∂") and _is_product(upper) and _is_product(lower)
    above = upper if _is_product(upper) else f"({upper})"
    below = lower if derivative or _is_unit(lower) else f"({lower})"
    return f"{above}/{below}"


def _is_product(text: str) -> bool:
    """Nothing outside brackets binds weaker than the bar of a fraction does."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([{⌊⌈⟨") - (character in ")]}⌋⌉⟩")
        weak = character in " /,;" or (at and character in "+-±∓") or kind(character) in ("rel", "big")
        if weak and not depth:
            return False
    return True


def _is_unit(text: str) -> bool:
    """One number, letter, group or call with its scripts: what may stand behind a slash as it is."""
    if _UNIT.fullmatch(text):
        return True
    call = _CALL.match(text)
    end = _closing(text, call.end()) if call else -1
    return end >= 0 and re.fullmatch(_SCRIPTED, text[end + 1 :]) is not None


def root(index: str, radicand: str) -> str:
    sign = _ROOTS[index] if index in _ROOTS else superscript(index) + "√"
    single = re.fullmatch(rf"\d+|[^\W\d_][{_MARKS}]*|∞", radicand) or _is_group(radicand)
    return sign + (radicand if single else f"({radicand})")


def accented(name: str, text: str) -> str:
    """A mark on each letter: a line over AB is a line over both; what is too long for that is written as a call."""
    mark = ACCENTS[name]
    if not text:
        return text
    if len(text) > 4 and name not in ("overline", "underline"):
        return f"{name}({text})"
    letters = re.findall(f".[{_MARKS}]*", text, re.DOTALL)
    return unicodedata.normalize("NFC", "".join(letter + mark for letter in letters))
