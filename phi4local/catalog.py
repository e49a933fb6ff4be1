"""The Phi-4 family as data: its models, what each is for, and the builds that others have published.

The data is `data/catalog.toml`; `catalog.toml` in PHI4LOCAL_HOME has the same format and adds to it or replaces
entries of it (docs/catalog.md). Both are read as distrustfully as any other file.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from phi4local.errors import FormatError
from phi4local.files import read_bounded
from phi4local.printing import printable
from phi4local.settings import home_folder
from quant.config import Config, LongRope
from quant.flash import FlashConfig
from quant.ggml import BUILDS
from quant.safetensors import SINGLE_NAME

_LIMIT_BYTES = 1_000_000
_OURS = Path(__file__).parent / "data" / "catalog.toml"
_CACHE_FOLDER = re.compile(r"models--([\w.\-]+)--([\w.\-]+)/snapshots/([0-9a-f]{40})")
FLAWS = ("end-of-turn", "template", "padding", "architecture", "unknown")


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a model's card asks for."""

    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True, slots=True)
class ReadyMade:
    """A file that somebody has published; `revision`, `bytes` and `sha256` as far as they are known."""

    repository: str
    revision: str | None
    file: str
    bytes: int | None
    sha256: str | None
    flaws: tuple[str, ...]
    note: str
    is_described: bool  # its size was recomputed to the byte from the mix

    @property
    def is_verified(self) -> bool:
        """Whether it is known to the byte what the file is."""
        return self.revision is not None and self.bytes is not None

    @property
    def is_gguf(self) -> bool:
        return self.file.endswith(".gguf")

    @property
    def is_folder(self) -> bool:
        """Whether it is an MLX build: the whole repository, of which `file` may name the largest part."""
        return self.file in ("", SINGLE_NAME)


@dataclass(frozen=True, slots=True)
class Model:
    """`spellings` are folder and repository names, in lower case. `config` is the shape where a GGUF can be made,
    `flash` where only an MLX build can.

    `runtimes` say `yes` or why not; `ready` are the published files of each build, the preferred one first.
    """

    name: str
    repository: str
    revision: str | None
    spellings: tuple[str, ...]
    config: Config | None
    header_bytes: int
    parameters: int | None
    context: int | None
    licence: str
    released: str
    knowledge: str
    purpose: str
    weaknesses: tuple[str, ...]
    sampling: Sampling | None
    runtimes: Mapping[str, str]
    ready: Mapping[str, tuple[ReadyMade, ...]]
    flash: FlashConfig | None = None

    @property
    def shape(self) -> Config | FlashConfig | None:
        """What builds can be made of, if any can."""
        return self.config or self.flash

    @property
    def described(self) -> dict[str, ReadyMade]:
        """The published file of each build whose mix and size are known to the byte."""
        found = ((build, file) for build, files in self.ready.items() for file in files)
        return {build: file for build, file in reversed(list(found)) if file.is_described and build in BUILDS}


def models() -> tuple[Model, ...]:
    """Every model of the catalogue, the user's own included (FormatError)."""
    path = home_folder() / "catalog.toml"
    return _models(path, path.stat().st_mtime_ns if os.path.lexists(path) else 0)


@lru_cache(maxsize=4)
def _models(own: Path, changed_ns: int) -> tuple[Model, ...]:
    tables = _Tables(_OURS)
    if changed_ns:
        tables.add(_Tables(own))
    return tuple(tables.models())


def find_model(name: str) -> Model | None:
    """The model of that name, spelling or repository, if the catalogue has it."""
    title = name.lower()
    known = (model for model in models() if title in (model.name, model.repository.lower(), *model.spellings))
    return next(known, None)


class _Tables:
    """A catalogue as it stands in its file; every error names the file and the place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            values = tomllib.loads(read_bounded(path, _LIMIT_BYTES).decode())
        except (ValueError, RecursionError) as error:
            raise FormatError(f"`{path}` is not TOML: {printable(str(error))[:120]}", hint=_HINT) from None
        self._keys(values, "the file", ("shapes", "flash", "models", "ready"))
        self.flash = {name: self._flash(name, table) for name, table in self._tables(values, "flash")}
        self.shapes = {name: self._shape(name, table) for name, table in self._tables(values, "shapes")}
        self.models_by_name = dict(self._tables(values, "models"))
        ready = values.get("ready", [])
        if not isinstance(ready, list) or not all(isinstance(table, dict) for table in ready):
            raise self._wrong("`ready` is not a list of tables")
        self.ready = [self._ready(table) for table in ready]

    def add(self, own: _Tables) -> None:
        """Take the user's entries; of the same name they replace ours, and their ready-made files come first."""
        self.path = own.path  # who is wrong from here on
        self.shapes |= own.shapes
        self.flash |= own.flash
        self.models_by_name |= own.models_by_name
        self.ready = own.ready + self.ready

    def models(self) -> Iterator[Model]:
        unknown = {model for model, _ in self.ready} - self.models_by_name.keys()
        if unknown:
            raise self._wrong(f"`ready` speaks of `{printable(min(unknown))}`, which is no model")
        for name, table in self.models_by_name.items():
            yield self._model(name, table)

    def _wrong(self, problem: str) -> FormatError:
        return FormatError(f"`{self.path}`: {problem}", hint=_HINT)

    def _tables(self, values: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        tables = values.get(key, {})
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            raise self._wrong(f"`{key}` holds something else than tables")
        for name, table in tables.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9.\-]{0,79}", name):
                raise self._wrong(f"`{printable(name)}` cannot be a name: lower case, digits, `.` and `-`")
            yield name, table

    def _keys(self, table: dict[str, Any], where: str, known: tuple[str, ...]) -> None:
        if strange := sorted(table.keys() - set(known)):
            raise self._wrong(f"{where} has `{printable(strange[0])}`; known are {', '.join(known)}")

    def _value(self, table: dict[str, Any], key: str, kind: str, where: str, *, needed: bool = False) -> Any:
        """A value of that kind of `_KINDS`, or its kind's empty one."""
        is_right, empty = _KINDS[kind]
        value = table.get(key)
        if value is None and not needed:
            return empty
        if not is_right(value):
            raise self._wrong(f"`{key}` of {where} is not {kind}: {printable(str(value))[:60]}")
        return value

    def _shape(self, name: str, table: dict[str, Any]) -> tuple[Config, int]:
        where = f"shape `{name}`"
        counts = [field.name for field in fields(Config) if field.type == "int"]
        table = {"sliding_window": 0} | table
        numbers = ("rope_theta", "rms_epsilon")
        factors = ("long_factor", "short_factor")
        self._keys(table, where, (*counts, *numbers, *factors, "tied", "header_bytes"))
        values = {key: self._value(table, key, "a dimension", where, needed=True) for key in counts}
        values |= {key: float(self._value(table, key, "a number", where, needed=True)) for key in numbers}
        long, short = (self._value(table, key, "a list of numbers", where) for key in factors)
        if zero := next((key for key in counts if not values[key] and key != "sliding_window"), None):
            raise self._wrong(f"`{zero}` of {where} is 0")
        if values["hidden"] % values["heads"] or values["heads"] % values["kv_heads"]:
            raise self._wrong(f"the heads of {where} do not divide its sizes")
        if len(long) != len(short) or (long and len(long) * 2 != values["rotary_dimensions"]):
            raise self._wrong(f"the factors of {where} are not two for each rotary dimension pair")
        rope = LongRope(tuple(map(float, long)), tuple(map(float, short))) if long else None
        tied = self._value(table, "tied", "true or false", where)
        config = Config(**values, long_rope=rope, tied=tied, special_ids={})
        return config, self._value(table, "header_bytes", "a count", where)

    def _flash(self, name: str, table: dict[str, Any]) -> FlashConfig:
        """A shape that only MLX runs, read as a config.json's values are."""
        where = f"flash `{name}`"
        names = [field.name for field in fields(FlashConfig) if field.name not in ("tied", "special_ids", "epsilon")]
        self._keys(table, where, (*names, "epsilon", "tied"))
        sizes = {key: self._value(table, key, "a dimension", where, needed=True) for key in names}
        if zero := next((key for key in names if not sizes[key]), None):
            raise self._wrong(f"`{zero}` of {where} is 0")
        if sizes["layers"] % 4 or sizes["hidden"] % sizes["heads"] or sizes["heads"] % sizes["kv_heads"]:
            raise self._wrong(f"the layers or heads of {where} do not divide its sizes")
        epsilon = float(self._value(table, "epsilon", "a number", where, needed=True))
        tied = self._value(table, "tied", "true or false", where)
        return FlashConfig(**sizes, epsilon=epsilon, tied=tied, special_ids={})

    def _model(self, name: str, table: dict[str, Any]) -> Model:
        where = f"model `{name}`"
        texts = ("licence", "released", "knowledge", "purpose")
        known = (
            "repository",
            "revision",
            "spellings",
            "shape",
            "parameters",
            "context",
            "weaknesses",
            "sampling",
            "flash",
        )
        self._keys(table, where, (*known, *texts, "runtimes"))
        shape = self._value(table, "shape", "text", where)
        if shape and shape not in self.shapes:
            raise self._wrong(f"`shape` of {where} names `{printable(shape)}`, which is none of the shapes")
        config, header_bytes = self.shapes.get(shape, (None, 0))
        flash = self._value(table, "flash", "text", where)
        if flash and (flash not in self.flash or shape):
            raise self._wrong(
                f"`flash` of {where} names `{printable(flash)}`, no table of `flash`, or there is a `shape`"
            )
        repository = self._value(table, "repository", "a repository", where, needed=True)
        ready: dict[str, tuple[ReadyMade, ...]] = {}
        for _, files in (entry for entry in self.ready if entry[0] == name):
            for build, file in files.items():
                ready[build] = (*ready.get(build, ()), file)
        return Model(
            name=name,
            repository=repository,
            revision=self._value(table, "revision", "a commit", where),
            spellings=tuple(self._value(table, "spellings", "a list of texts", where)),
            config=config,
            header_bytes=header_bytes,
            parameters=self._value(table, "parameters", "a size", where),
            context=self._value(table, "context", "a size", where),
            **{key: self._value(table, key, "text", where) for key in texts},
            weaknesses=tuple(self._value(table, "weaknesses", "a list of texts", where)),
            sampling=self._sampling(table, where),
            runtimes=self._value(table, "runtimes", "a table of texts", where),
            ready=ready,
            flash=self.flash.get(flash),
        )

    def _sampling(self, table: dict[str, Any], where: str) -> Sampling | None:
        values = table.get("sampling")
        if values is None:
            return None
        if not isinstance(values, dict):
            raise self._wrong(f"`sampling` of {where} is not a table")
        self._keys(values, f"`sampling` of {where}", ("temperature", "top_k", "top_p"))
        return Sampling(
            float(self._value(values, "temperature", "a number", where, needed=True)),
            self._value(values, "top_k", "a count", where, needed=True),
            float(self._value(values, "top_p", "a number", where, needed=True)),
        )

    def _ready(self, table: dict[str, Any]) -> tuple[str, dict[str, ReadyMade]]:
        model = self._value(table, "model", "text", "a table of `ready`", needed=True)
        where = f"a table of `ready` for `{printable(model)}`"
        self._keys(table, where, ("model", "repository", "revision", "sizes_checked", "flaws", "note", "files"))
        repository = self._value(table, "repository", "a repository", where, needed=True)
        flaws = tuple(self._value(table, "flaws", "a list of texts", where, needed=True))
        if strange := set(flaws) - set(FLAWS):
            raise self._wrong(f"`flaws` of {where} has `{printable(min(strange))}`; known are {', '.join(FLAWS)}")
        files: dict[str, ReadyMade] = {}
        for build, file in self._value(table, "files", "a table", where, needed=True).items():
            at = f"`{printable(build)}` of {where}"
            if not re.fullmatch(r"[A-Za-z0-9][\w.\-]{0,59}", build, re.ASCII) or not isinstance(file, dict):
                raise self._wrong(f"{at} is not a build with a file")
            self._keys(file, at, ("file", "bytes", "sha256", "own_mix"))
            own_mix = self._value(file, "own_mix", "true or false", at)
            files[build] = ReadyMade(
                repository=repository,
                revision=self._value(table, "revision", "a commit", where),
                file=self._value(file, "file", "a plain file name", at, needed=True),
                bytes=self._value(file, "bytes", "a size", at),
                sha256=self._value(file, "sha256", "a sha256", at),
                flaws=flaws,
                note=self._value(table, "note", "text", where),
                is_described=self._value(table, "sizes_checked", "true or false", where) and not own_mix,
            )
        return model, files


_HINT = "Its format is in docs/catalog.md"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 2000


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 50


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e30


def _matches(pattern: str) -> Any:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _all(is_right: Any) -> Any:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


# kind of a value, as an error names it -> (whether a value is of it, what stands for an absent one)
_KINDS: dict[str, tuple[Any, Any]] = {
    "text": (_is_text, ""),
    "a list of texts": (_all(_is_text), ()),
    "a table of texts": (lambda value: isinstance(value, dict) and all(map(_is_text, value.values())), {}),
    "a table": (lambda value: isinstance(value, dict), {}),
    "a count": (_is_count, 0),
    "a dimension": (lambda value: _is_count(value) and value < 1 << 31, 0),
    "a size": (lambda value: _is_count(value) and value > 0, None),
    "a number": (_is_number, 0.0),
    "a list of numbers": (_all(_is_number), ()),
    "true or false": (lambda value: isinstance(value, bool), False),
    "a repository": (_matches(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}"), ""),
    "a commit": (_matches(r"[0-9a-f]{40}"), None),
    "a sha256": (_matches(r"[0-9a-f]{64}"), None),
    "a plain file name": (_matches(r"|\w[\w.\-+]{0,150}(/\w[\w.\-+]{0,150}){0,3}"), ""),
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a folder of weights comes from, as far as its place on the disk tells."""

    repository: str | None
    revision: str | None


def origin(folder: Path) -> Origin:
    """Repository and revision of a folder in the Hub's cache; unknown elsewhere."""
    match = _CACHE_FOLDER.search(folder.resolve().as_posix())
    return Origin(f"{match[1]}/{match[2]}", match[3]) if match else Origin(None, None)


def model_name(folder: Path, config: Config | FlashConfig) -> str:
    """What a model made from `folder` is called.

    A name of the catalogue is given only where the shape is the model's and the repository or, without one, the
    folder is spelt like it; a fine-tune keeps its own name, so that it never takes the original's place.
    """
    repository = origin(folder).repository
    title = slug(repository.split("/")[-1] if repository else folder.resolve().name)
    for model in models():
        known = repository.lower() == model.repository.lower() if repository else title in model.spellings
        if known and model.shape and shape_of(model.shape) == shape_of(config):
            return model.name
    return title


def shape_of(config: Config | FlashConfig) -> tuple[int, int, float]:
    """What tells one model of the family from another; a flash model has no rope."""
    return config.hidden, config.layers, config.rope_theta if isinstance(config, Config) else 0.0


def slug(text: str) -> str:
    """A name that is safe as a folder and easy to type."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:80].strip("-.") or "model"
