"""GGUFs as other programs keep them: Ollama's manifests and blobs, the Hub's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from phi4local.settings import nano_folder
from tests.running import make

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL_LAYER = "application/vnd.ollama.image.model"


def own_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the user's own, in which the other programs keep theirs."""
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    for name in ("OLLAMA_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


def write_nano(folder: Path) -> Path:
    """A small real model."""
    path = folder / "nano-Q4_0.gguf"
    make(nano_folder(), "Q4_0", path)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ollama(root: Path, source: Path, name: str = "registry.ollama.ai/library/phi4/latest") -> Path:
    """The file as a model of Ollama's."""
    digest = sha256(source)
    blob = root / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, blob)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64, "size": 3},
        {"mediaType": MODEL_LAYER, "digest": f"sha256:{digest}", "size": source.stat().st_size},
    ]
    manifest(root, name, json.dumps({"schemaVersion": 2, "layers": layers}))
    return blob


def manifest(root: Path, name: str, text: str) -> None:
    path = root / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cached(root: Path, source: Path, name: str = "phi-4-Q4_0.gguf", repository: str = "owner/phi-4-GGUF") -> Path:
    """The file in the Hub's cache, under its name in a snapshot."""
    folder = root / f"models--{repository.replace('/', '--')}"
    blob = folder / "blobs" / sha256(source)
    path = folder / "snapshots" / COMMIT / name
    for parent in (blob.parent, path.parent):
        parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, blob)
    path.symlink_to(os.path.relpath(blob, path.parent))
    return path
