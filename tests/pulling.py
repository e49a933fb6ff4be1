"""Pulls from the loopback hub by the command line in a process of its own: repositories, homes, disturbances.

acme/phi4-nano     the built-in checkpoint, as official weights
acme/nano-gguf     a build of it, as somebody else's file
acme/nano-mlx      another, as mlx-lm makes it: with the first release's flaws, and files that nobody should fetch
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from phi4local.settings import nano_folder
from quant.config import Config, read_config
from tests.gguf_models import Geometry, write_random
from tests.hub import Hub
from tests.running import make
from tests.shapes import PHI4_RELEASE_TEMPLATE

OFFICIAL, READY, FILE = "acme/phi4-nano", "acme/nano-gguf", "nano-Q4_K_M.gguf"
MLX, MLX_BUILD = "acme/nano-mlx", "nano:mlx-4bit"
BUILD = "nano:Q4_K_M"
EOS, PAD, TEMPLATE = "tokenizer.ggml.eos_token_id", "tokenizer.ggml.padding_token_id", "tokenizer.chat_template"
OLD_END = 929  # <|endoftext|> of the built-in vocabulary
MIB = 1 << 20


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- repositories


def publish_nano(root: Path) -> Path:
    """The built-in checkpoint and its Q4_K_M, as two repositories of a hub; the folder that holds them."""
    weights = root / OFFICIAL
    shutil.copytree(nano_folder(), weights)
    (root / READY).mkdir()
    make(weights, "Q4_K_M", root / READY / FILE)
    return root


def publish_mlx(root: Path) -> Path:
    """The built-in checkpoint in four bits as mlx-lm makes it, in two shards, beside what else people publish."""
    import mlx.core as core
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model

    folder = root / MLX
    folder.mkdir(parents=True)
    for name in (*MLX_SMALL, "vocab.json"):
        shutil.copy(nano_folder() / name, folder / name)
    model, config = load_model(nano_folder())
    model, config = quantize_model(model, config, 64, 4)
    arrays = sorted(tree_flatten(model.parameters()))
    shards = {f"model-0000{n + 1}-of-00002.safetensors": dict(arrays[n::2]) for n in (0, 1)}
    for name, part in shards.items():
        core.save_safetensors(str(folder / name), part, metadata={"format": "mlx"})
    index = {"metadata": {}, "weight_map": {key: name for name, part in shards.items() for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    for name in ("modeling_phi3.py", "pytorch_model.bin", "model.pkl", "README.md", ".gitattributes"):
        (folder / name).write_text("not to be fetched")
    return folder


MLX_SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def write_flawed(source: Path, target: Path, template: str | None = PHI4_RELEASE_TEMPLATE, **more: Any) -> Path:
    """A copy of a build with the first release's end of turn, padding and template (None: without one)."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "phi3")
    end = reader.fields["tokenizer.ggml.tokens"].contents().index("<|endoftext|>")
    changed: dict[str, Any] = {EOS: end, PAD: end, TEMPLATE: template} | {f"phi3.{key}": more[key] for key in more}
    for name, known in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            value, kind = changed.get(name, known.contents()), known.types[0]
            if value is not None:
                writer.add_key_value(name, value, kind, known.types[1] if len(known.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    return write_out(writer)


def write_out(writer: gguf.GGUFWriter) -> Path:
    """Let a writer of the `gguf` package write all that it was told."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(writer.path)


def write_large(path: Path) -> Path:
    """A sound model of 29 MB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_random(path, Geometry(hidden=512, layers=3, feed_forward=1024, heads=8, kv_heads=4))
    return path


# -- a home and its catalogue


def catalog(
    *,
    repository: str = READY,
    revision: str = "",
    size: int = 0,
    sha256: str = "",
    flaws: str = "[]",
    official: str = OFFICIAL,
    file: str = FILE,
    shape: Path | None = None,
    mlx: str = "",
) -> str:
    """A user's catalog.toml with the model `nano` and its published Q4_K_M."""
    known = f', bytes = {size}, sha256 = "{sha256}"' if size else ""
    pinned = f'revision = "{revision}"\n' if revision else ""
    return (
        shape_table(read_config(shape or nano_folder()))
        + f'[models.nano]\nrepository = "{official}"\nshape = "nano"\n'
        + f'[[ready]]\nmodel = "nano"\nrepository = "{repository}"\n{pinned}flaws = {flaws}\n'
        + f'[ready.files]\nQ4_K_M = {{ file = "{file}"{known} }}\nmlx-4bit = {{ file = "" }}\n'
    )


def shape_table(config: Config) -> str:
    """A configuration as a table of the catalogue."""
    values = dataclasses.asdict(config)
    kept = {name: value for name, value in values.items() if name not in ("long_rope", "special_ids")}
    return "[shapes.nano]\nheader_bytes = 90_000\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in kept.items())


@dataclass
class Client:
    """A user: a home with a catalogue, and the hub that the environment names."""

    home: Path
    endpoint: str
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def env(self) -> dict[str, str]:
        return self.environ | {
            "HF_ENDPOINT": self.endpoint,
            "PHI4LOCAL_HOME": str(self.home),
            "HF_HOME": str(self.home.parent / "hf"),
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_HUB_ETAG_TIMEOUT": "1",
        }

    def run(self, *arguments: str | Path, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        command = [sys.executable, "-m", "phi4local", *map(str, arguments)]
        return subprocess.run(
            command,
            env=self.env | env,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def pull(
        self, *arguments: str, source: str = "ready", timeout: float = 60, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """`pull nano:Q4_K_M --from SOURCE --json`."""
        return self.run("pull", BUILD, "--from", source, "--json", *arguments, timeout=timeout, **env)

    def start(self, source: str = "ready") -> subprocess.Popen[bytes]:
        """A pull that is left alone."""
        command = [sys.executable, "-m", "phi4local", "pull", BUILD, "--from", source, "--json"]
        null = subprocess.DEVNULL
        return subprocess.Popen(command, env=self.env, stdin=null, stdout=null, stderr=null)

    @property
    def target(self) -> Path:
        return self.home / "models" / "nano" / FILE

    @property
    def partial(self) -> Path:
        return self.target.with_name(FILE + ".partial")

    def listed(self) -> list[str]:
        """What `list` shows; each is whole."""
        found = json.loads(self.run("list", "--json").stdout)
        for entry in found:
            manifest = json.loads(Path(entry["path"] + ".manifest.json").read_text())
            assert sha256(Path(entry["path"])) == manifest["sha256"]
        return [f"{entry['name']}:{entry['build']}" for entry in found]


def client(hub: Hub, home: Path, text: str = "") -> Client:
    """A user of a hub; `text` is the catalogue, by default the plain one."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "catalog.toml").write_text(text or catalog())
    return Client(home, hub.endpoint)


# -- disturbances


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Poll until something is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)


def grown(path: Path, size: int) -> Callable[[], bool]:
    """Whether a file has at least that many bytes."""
    return lambda: path.exists() and path.stat().st_size >= size


def kill(child: subprocess.Popen[bytes], hub: Hub) -> bool:
    """SIGKILL and wait until the hub has counted what arrived; False if the child had ended by itself."""
    child.kill()
    ended = child.wait() == -9
    assert hub.settle()
    return ended


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder and its size, but what Python and the engine keep for themselves."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in walk(folder)}


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)


def controls(*texts: str) -> set[str]:
    """Control characters that could act on a terminal."""
    return {c for text in texts for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160}


# -- what a process and its children do, told by themselves

_WITNESS = """
import atexit, os, sys
def _tell(line):
    with open(os.environ["WITNESS"], "a") as file:
        file.write(line + "\\n")
def _hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        _tell(f"socket {event} {arguments[1:]!r}")
def _peak():
    with open("/proc/self/status") as file:
        peak = next((line.split()[1] for line in file if line.startswith("VmHWM")), "0")
    _tell(f"peak {peak}")
sys.addaudithook(_hook)
if sys.platform == "linux":
    atexit.register(_peak)
"""


@dataclass(frozen=True)
class Witness:
    """Sockets that a command and its children tried to use, and the largest memory that one of them took."""

    log: Path
    env: Mapping[str, str]

    @property
    def sockets(self) -> list[str]:
        return [line for line in self._lines() if line.startswith("socket ")]

    @property
    def peak_bytes(self) -> int:
        return max(int(line.split()[1]) << 10 for line in self._lines() if line.startswith("peak "))

    def _lines(self) -> list[str]:
        return self.log.read_text().splitlines()


def witness(folder: Path) -> Witness:
    """Pass its `env` to a command."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_WITNESS)
    return Witness(folder / "log", {"PYTHONPATH": str(folder), "WITNESS": str(folder / "log")})
