"""Quantizing shards that are still arriving: nothing that was made of wrong bytes counts, now or in a later run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import quant.convert
from phi4local.backends.ask import tensor_types
from phi4local.errors import FormatError
from quant.check import hash_file
from quant.convert import Built, convert
from quant.journal import Journal
from quant.plan import make_plan
from quant.source import read_source
from tests.running import finish, make

SHARD = "model-00002-of-00002.safetensors"


class Arrived:
    """Shards that are all here, whatever their bytes are; `promised` are the hashes that they should have."""

    stamp = "always the same"

    def __init__(self, folder: Path, promised: Mapping[str, str]) -> None:
        self.folder, self.promised = folder, promised
        self.sizes = {name: (folder / name).stat().st_size for name in promised}
        self.released: list[str] = []
        self.begun: list[str] = []

    def here_bytes(self, name: str) -> int:
        return self.sizes[name]

    def begin(self, names: Sequence[str]) -> None:
        self.begun = list(names)

    def wait(self, name: str, end: int) -> bool:
        return end <= self.sizes[name]

    def check(self, name: str, sha256: str) -> None:
        if sha256 != self.promised[name]:
            raise FormatError(f"`{name}` has other bytes")

    def release(self, name: str) -> None:
        self.released.append(name)


def build(arrived: Arrived, target: Path) -> Built:
    plan = make_plan(read_source(arrived.folder, arrived), "Q4_K_M", tensor_types)
    return finish(convert(plan, target, threads=2, certify=lambda _built: None))


@pytest.mark.parametrize("step", [1, 256 << 20], ids=["noted at once", "noted at the end"])
def test_tensors_of_a_refused_shard_are_made_again(
    step: int, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quant.convert, "_CHECKPOINT_BYTES", step)
    expected = make(tiny, "Q4_K_M", tmp_path / "undisturbed.gguf").sha256
    promised = {path.name: hash_file(path) for path in tiny.glob("*.safetensors")}
    folder = shutil.copytree(tiny, tmp_path / tiny.name)
    data = bytearray((folder / SHARD).read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    for place in (header + 5, header + (len(data) - header) // 2, len(data) - 3):  # in the first, in one, in the last
        data[place] ^= 1
        (folder / SHARD).write_bytes(data)
        data[place] ^= 1
        arrived = Arrived(folder, promised)
        with pytest.raises(FormatError, match="other bytes"):
            build(arrived, tmp_path / "out.gguf")
        assert SHARD not in arrived.released
        assert not (tmp_path / "out.gguf").exists()
    (folder / SHARD).write_bytes(data)
    arrived = Arrived(folder, promised)
    assert build(arrived, tmp_path / "out.gguf").sha256 == expected
    assert arrived.begun == [SHARD]  # the other one counted in the first run


def test_a_journal_forgets_what_it_has_just_been_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "f")
    journal.append({"tensor": "a"}, {"tensor": "b"}, {"file": "s", "sha256": "00"})
    journal.note("shift", "1 2")
    journal.forget(["b", "c"])
    assert (journal.finished, journal.hashes, journal.notes) == ({"a"}, {"s": "00"}, {"shift": "1 2"})
    journal.close()
    again = Journal(tmp_path / "j", "f")
    assert (again.finished, again.hashes, again.notes) == ({"a"}, {"s": "00"}, {"shift": "1 2"})
    again.close()
