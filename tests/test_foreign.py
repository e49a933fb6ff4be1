"""What other programs have brought to this disk is found, and nothing that they keep leads us anywhere else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from phi4local.actions.adopt import adopt, found_here
from phi4local.foreign import Found, find_foreign
from tests.foreign import MODEL_LAYER, cached, ollama, own_home, sha256, write_nano
from tests.gguf_models import Geometry, write_random
from tests.running import finish, json_of, phi4local


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path / "user", monkeypatch)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model that nobody changes."""
    return write_nano(tmp_path_factory.mktemp("nano"))


def test_every_programs_files_are_found(user: Path, nano: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    write_random(other, Geometry())
    blob = ollama(user / ".ollama/models", nano)
    ollama(user / ".ollama/models", other, "hf.co/owner/phi-4-GGUF/Q4_K_M")
    ollama(user / ".ollama/models", nano, "registry.ollama.ai/somebody/tuned/7b")  # the same file once more
    studio = user / ".lmstudio/models/lmstudio-community/phi-4-GGUF/phi-4-Q4_0.gguf"
    older = user / ".cache/lm-studio/models/owner/repo/deep/er/model.GGUF"
    for path in (studio, older):
        path.parent.mkdir(parents=True)
        shutil.copyfile(nano, path)
    snapshot = cached(user / ".cache/huggingface/hub", nano, "sub/phi-4-Q4_0.gguf")
    found = {(one.program, one.model): one.path for one in find_foreign()}
    assert found == {
        ("Ollama", "hf.co/owner/phi-4-GGUF:Q4_K_M"): blob.with_name(f"sha256-{sha256(other)}"),
        ("Ollama", "phi4:latest"): blob,
        ("LM Studio", "lmstudio-community/phi-4-GGUF/phi-4-Q4_0.gguf"): studio,
        ("LM Studio", "owner/repo/deep/er/model.GGUF"): older,
        ("Hugging Face", "owner/phi-4-GGUF/sub/phi-4-Q4_0.gguf"): snapshot,
    }


@pytest.mark.parametrize("variable", ["OLLAMA_MODELS", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_folders_that_the_environment_names(
    variable: str, nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "big disk"
    monkeypatch.setenv(variable, str(root))
    below = {"HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}.get(variable, "")
    path = ollama(root, nano) if variable == "OLLAMA_MODELS" else cached(root / below, nano)
    assert [one.path for one in find_foreign()] == [path]


def test_the_family_comes_first_and_others_are_told(user: Path, nano: Path, tmp_path: Path) -> None:
    root = user / ".lmstudio/models/a/b"
    root.mkdir(parents=True)
    data = bytearray(nano.read_bytes())
    (root / "cut.gguf").write_bytes(data[: len(data) // 2])
    (root / "text.gguf").write_text("not a model")
    (root / "folder.gguf").mkdir()
    (root / "gone.gguf").symlink_to(tmp_path / "nowhere")
    (root / "self.gguf").symlink_to(root / "self.gguf")
    os.mkfifo(root / "pipe.gguf")
    shutil.copyfile(nano, root / "whole.gguf")
    found = find_foreign()
    assert [(one.path.name, one.is_phi, one.problem is None) for one in found] == [
        ("whole.gguf", True, True),
        ("cut.gguf", False, False),
    ]


HOSTILE: dict[str, str] = {
    "a path for a digest": json.dumps({"layers": [{"mediaType": MODEL_LAYER, "digest": "sha256:../../../secret"}]}),
    "a short digest": json.dumps({"layers": [{"mediaType": MODEL_LAYER, "digest": "sha256:" + "a" * 63}]}),
    "a digest with more behind it": json.dumps(
        {"layers": [{"mediaType": MODEL_LAYER, "digest": "sha256:" + "a" * 64 + "/../x"}]}
    ),
    "a number for a digest": json.dumps({"layers": [{"mediaType": MODEL_LAYER, "digest": 10**40}]}),
    "no layers": "{}",
    "layers of another kind": json.dumps({"layers": {"mediaType": MODEL_LAYER}}),
    "a layer of another kind": json.dumps({"layers": [[], None, "x", {"mediaType": []}]}),
    "a list": "[]",
    "depth": "[" * 200_000,
    "a long number": "9" * 100_000,
    "two megabytes": json.dumps({"layers": [" " * 2_000_000]}),
    "no text": "\udcff\udcfe",
    "nothing": "",
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_manifests_lead_nowhere(hostile: str, user: Path, nano: Path) -> None:
    root = user / ".ollama/models"
    path = root / "manifests/registry.ollama.ai/library/evil/latest"
    path.parent.mkdir(parents=True)
    path.write_bytes(HOSTILE[hostile].encode(errors="surrogateescape"))
    (root / "blobs").mkdir()
    shutil.copyfile(nano, user / "secret")
    blob = ollama(root, nano)
    assert [(one.model, one.path) for one in find_foreign()] == [("phi4:latest", blob)]


def test_names_are_printed_without_control_characters(user: Path, nano: Path) -> None:
    ollama(user / ".ollama/models", nano, "registry.ollama.ai/library/\x1b[31mred\nline/\u202etag")
    studio = user / ".lmstudio/models/a/b" / os.fsdecode(b"\xff\xfe.gguf")
    studio.parent.mkdir(parents=True)
    shutil.copyfile(nano, studio)
    result = phi4local("import", env={"PYTHONUTF8": "1"})
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3
    assert not set(result.stdout) & set("\x1b\u202e")
    assert len(json_of(phi4local("import", "--json", env={"PYTHONUTF8": "1"}))) == 2
    assert finish(adopt(studio, None)).build.manifest.source["files"][0]["name"] == "\ufffd\ufffd.gguf"


def test_nothing_found_is_no_error() -> None:
    assert json_of(phi4local("import", "--json")) == []
    result = phi4local("import")
    assert (result.returncode, result.stdout) == (0, "")
    assert "phi4local import" in result.stderr


def facts(found: Found, label: str | None) -> tuple[Any, ...]:
    return found.program, found.model, label


def test_what_is_imported_is_known_by_its_file(user: Path, nano: Path) -> None:
    first = cached(user / ".cache/huggingface/hub", nano, repository="a/b")
    cached(user / ".cache/huggingface/hub", nano, repository="a/c")
    finish(adopt(first, "mine:x"))
    here = [facts(*one) for one in found_here()]
    assert here == [
        ("Hugging Face", "a/b/phi-4-Q4_0.gguf", "mine:x"),
        ("Hugging Face", "a/c/phi-4-Q4_0.gguf", None),
    ]
