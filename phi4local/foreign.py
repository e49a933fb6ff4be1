"""GGUFs that other programs have brought to this disk, and what their places say of them.

    Ollama        manifests/HOST/USER/NAME/TAG names a digest, and blobs/sha256-DIGEST is the file
    LM Studio     PUBLISHER/REPOSITORY/FILE.gguf
    Hugging Face  models--OWNER--NAME/snapshots/COMMIT/FILE.gguf, a link to a file in blobs/

These folders hold what strangers have published: reads are bounded, and nothing that stands in a file becomes part of
a path before it is known to be a digest. Nothing is written.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phi4local.errors import FormatError, NotFound
from phi4local.files import read_bounded
from quant.metadata import ARCHITECTURE
from quant.sound import read_model_header

OLLAMA, LM_STUDIO, HUB = "Ollama", "LM Studio", "Hugging Face"
_MANIFEST_LIMIT_BYTES = 1_000_000
_FILE_LIMIT = 10_000  # of one folder; a disk holds fewer models
_DEPTH_LIMIT = 5
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_BLOB = re.compile(r"(?:sha256-)?([0-9a-f]{64})")
_CACHED = re.compile(r"/models--([\w.\-]+?)--([\w.\-]+)/(?:snapshots/([0-9a-f]{40})|blobs)/", re.ASCII)


@dataclass(frozen=True, slots=True)
class Found:
    """A GGUF of another program; `model` is that program's name for it, `problem` why it cannot be loaded."""

    program: str
    model: str
    path: Path
    bytes: int
    architecture: str | None
    is_phi: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """What a file's place says: how it is called, where it is from, and the sha256 that its bytes must have."""

    title: str
    repository: str | None
    revision: str | None
    sha256: str | None


def find_foreign() -> list[Found]:
    """Every GGUF in the other programs' folders, those of the Phi family first."""
    found: dict[tuple[str, Path], Found] = {}
    for program, model, path in itertools.chain(_ollama(), _lm_studio(), _hub()):
        try:
            key = program, path.resolve(strict=True)
            if key not in found and (one := _look(program, model, path)):
                found[key] = one
        except (OSError, RuntimeError):  # gone, not readable, a link to itself
            continue
    return sorted(found.values(), key=lambda one: (not one.is_phi, one.program, one.model))


def place(path: Path) -> Place:
    """What is known of the file at `path` before it is read."""
    real, given = path.resolve(), path.absolute()
    blob = _BLOB.fullmatch(real.name) if real.parent.name == "blobs" else None
    cached = _CACHED.search(given.as_posix()) or _CACHED.search(real.as_posix())
    title = given.name[:-5] if given.name.lower().endswith(".gguf") else given.name
    if blob and given.name == real.name:
        title = cached[2] if cached else _ollama_name(real) or title
    return Place(
        title=shown(title),
        repository=f"{cached[1]}/{cached[2]}" if cached else None,
        revision=cached[3] if cached else None,
        sha256=blob[1] if blob else None,
    )


def shown(text: str | Path) -> str:
    """A file name as text that every encoding of Unicode takes; bytes that are none become U+FFFD."""
    return os.fsencode(text).decode(errors="replace")


def _look(program: str, model: str, path: Path) -> Found | None:
    """The file, if it is one that begins like a GGUF."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return None
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return None
    try:
        header = read_model_header(path)
    except (FormatError, NotFound) as error:
        return Found(program, shown(model), path, status.st_size, None, False, error.message)
    architecture = header.text("general.architecture")
    is_phi = architecture == ARCHITECTURE or "<|im_sep|>" in (header.items("tokenizer.ggml.tokens") or ())
    return Found(program, shown(model), path, status.st_size, architecture, is_phi, None)


def _ollama() -> Iterator[tuple[str, str, Path]]:
    own = _folder(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models")
    for root in (own, Path("/usr/share/ollama/.ollama/models")):
        for model, blob in _ollama_models(root):
            yield OLLAMA, model, blob


def _ollama_models(root: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of every model that Ollama's folder lists."""
    manifests = root / "manifests"
    for path in _matches(manifests, "*/*/*/*"):
        if digest := _model_digest(path):
            host, user, name, tag = path.relative_to(manifests).parts
            before = "" if user == "library" else f"{user}/"
            before = before if host == "registry.ollama.ai" else f"{host}/{user}/"
            yield f"{before}{name}:{tag}", root / "blobs" / f"sha256-{digest}"


def _model_digest(manifest: Path) -> str | None:
    """The sha256 that a manifest names for its model; None for anything else than a manifest."""
    try:
        values = json.loads(read_bounded(manifest, _MANIFEST_LIMIT_BYTES))
    except (FormatError, NotFound, ValueError, RecursionError):
        return None
    layers = values.get("layers") if isinstance(values, dict) else None
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and layer.get("mediaType") == _MODEL_LAYER:
            match = _DIGEST.fullmatch(str(layer.get("digest")))
            return match[1] if match else None
    return None


def _ollama_name(blob: Path) -> str | None:
    """How Ollama calls the model of a blob, without its tag."""
    models = _ollama_models(blob.parent.parent)
    return next((model.split("/")[-1].partition(":")[0] for model, path in models if path.name == blob.name), None)


def _lm_studio() -> Iterator[tuple[str, str, Path]]:
    for root in (_folder("~/.lmstudio/models"), _folder("~/.cache/lm-studio/models")):
        for path in _ggufs(root):
            yield LM_STUDIO, path.relative_to(root).as_posix(), path


def _hub() -> Iterator[tuple[str, str, Path]]:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{caches}/huggingface"
    root = _folder(os.environ.get("HF_HUB_CACHE") or f"{home}/hub")
    for snapshot in _matches(root, "models--*--*/snapshots/*"):
        _, owner, name = snapshot.parts[-3].split("--", 2)
        for path in _ggufs(snapshot):
            yield HUB, f"{owner}/{name}/{path.relative_to(snapshot).as_posix()}", path


def _matches(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(itertools.islice(root.glob(pattern), _FILE_LIMIT))
    except OSError:  # a folder of another user
        return []


def _ggufs(root: Path) -> list[Path]:
    """The files below `root` that are called so, in order; a folder that cannot be read has none."""
    return sorted(itertools.islice(_walk(root), _FILE_LIMIT))


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if len(here.relative_to(root).parts) >= _DEPTH_LIMIT:
            folders.clear()
        yield from (here / name for name in names if name.lower().endswith(".gguf"))


def _folder(text: str) -> Path:
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path.expanduser raises where there is no home
