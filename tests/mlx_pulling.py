"""Pulls of the MLX build `nano:mlx-4bit` from the loopback hub, and what must be so after one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from quant.check import folder_sha256
from tests.hub import Hub
from tests.pulling import MLX, MLX_BUILD, Client, sha256

SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
SMALL = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def get(user: Client, *arguments: str, source: str = "ready", **more: Any) -> subprocess.CompletedProcess[str]:
    return user.run("pull", MLX_BUILD, "--from", source, "--json", *arguments, **more)


def folder_of(user: Client) -> Path:
    return user.home / "models" / "nano" / "nano-mlx-4bit"


def check_whole(user: Client, hub: Hub, found: dict[str, Any]) -> None:
    """The folder is what its manifest says, its weights are the published ones, and nothing lies beside it."""
    folder = folder_of(user)
    hashes = {path.name: sha256(path) for path in folder.iterdir()}
    assert found["files"] == [
        {"name": name, "bytes": (folder / name).stat().st_size, "sha256": hashes[name]} for name in sorted(hashes)
    ]
    assert found["sha256"] == folder_sha256(hashes)
    assert sorted(hashes) == sorted([*SMALL, *SHARDS])
    assert all(hashes[name] == sha256(hub.root / MLX / name) for name in SHARDS)
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, f"{folder.name}.manifest.json"]
