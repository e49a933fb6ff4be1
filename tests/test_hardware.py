"""The machine probe: captured formats against golden facts, damage sweeps, machines made of files, and this machine.

The samples in `data/hardware` have each tool's format and plausible contents; none names a real person's machine.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hardware import cards, cgroup, parse
from hardware.probe import probe
from hardware.report import Cpu, Disk, EngineBuild, EngineDevice, Gpu, Memory, Report, plain
from hardware.source import Source

DATA = Path(__file__).parent / "data" / "hardware"
GIB = 1 << 30
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PARSERS: dict[str, Callable[[str], object]] = {
    name: function
    for module in (parse, cards)
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and [*inspect.signature(function).parameters] == ["text"]
    if not name.startswith("_")
}
GOLDEN = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))
SAMPLES = pytest.mark.parametrize(
    ("sample", "parser"), [(sample, parser) for sample, facts in GOLDEN.items() for parser in facts]
)


def text_of(sample: str) -> str:
    return (DATA / sample).read_text(encoding="utf-8")


def read(parser: str, text: str) -> object:
    return plain(PARSERS[parser](text))


def is_part(found: object, whole: object) -> bool:
    """Whether damage left only true facts: everything known is as in the whole; counts and lists may be smaller."""
    if isinstance(found, dict) and isinstance(whole, dict):
        return all(key in whole and is_part(value, whole[key]) for key, value in found.items())
    if isinstance(found, list) and isinstance(whole, list):
        return all(any(is_part(item, other) for other in whole) for item in found)
    if isinstance(found, int) and isinstance(whole, int) and whole < GIB:
        return found <= whole
    return found is None or found == whole


def cuts(text: str) -> list[int]:
    """Every place to cut a text; in a very long one, every seventh after the first processor."""
    whole = len(text) if len(text) < 6000 else 2000
    return [*range(whole), *range(whole, len(text), 7)]


# -- texts to facts


@SAMPLES
def test_a_sample_gives_its_golden_facts(sample: str, parser: str) -> None:
    assert read(parser, text_of(sample)) == GOLDEN[sample][parser]


@SAMPLES
def test_a_text_cut_anywhere_gives_true_facts_or_none(sample: str, parser: str) -> None:
    text = text_of(sample)
    assert [end for end in cuts(text) if not is_part(read(parser, text[:end]), GOLDEN[sample][parser])] == []


@SAMPLES
def test_a_text_that_lost_lines_gives_true_facts_or_none(sample: str, parser: str) -> None:
    lines, chance = text_of(sample).splitlines(keepends=True), random.Random(14)
    for share in [0.02, 0.1, 0.3, 0.7] * 50:
        kept = "".join(line for line in lines if chance.random() > share)
        assert is_part(read(parser, kept), GOLDEN[sample][parser]), kept


@SAMPLES
def test_a_text_with_flipped_bits_breaks_nothing(sample: str, parser: str) -> None:
    data, chance = text_of(sample).encode(), random.Random(15)
    for place in sorted(chance.sample(range(len(data)), min(len(data), 400))):
        flipped = data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
        found = PARSERS[parser](flipped.decode("utf-8", errors="replace"))
        for card in found if isinstance(found, tuple) else ():
            if isinstance(card, Gpu):
                assert_sane(cards.checked(card))


def assert_sane(card: Gpu) -> None:
    for part_bytes in (card.free_bytes, card.used_bytes):
        assert part_bytes is None or 0 <= part_bytes <= (card.total_bytes or 0) <= 8 << 40
    for text in (card.name, card.driver, card.compute_capability):
        assert text is None or text.isprintable()


def test_every_parser_has_a_sample() -> None:
    assert {parser for facts in GOLDEN.values() for parser in facts} == PARSERS.keys()


@example("{" * 100_000)
@example('{"a":' * 50_000)
@example('{"SPDisplaysDataType": [{"sppci_cores": ' + "9" * 5_000 + "}]}")
@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode("latin-1"))))
def test_no_parser_raises_for_any_text(text: str) -> None:
    for parser in PARSERS.values():
        parser(text)


@pytest.mark.parametrize(
    ("parser", "text", "expected"),
    [
        (parse.cgroup_bytes, "max\n", None),
        (parse.cgroup_bytes, "9223372036854771712\n", None),
        (parse.cgroup_cores, "max 100000\n", None),
        (parse.cgroup_cores, "-1\n100000\n", None),
        (parse.cgroup_cores, "150000\n100000\n", 1.5),
        (parse.cgroup_cores, "100000 0\n", None),
        (parse.wired_limit_bytes, "iogpu.wired_limit_mb: 12288\n", 12 * GIB),
        (cards.bus_id, "00000000:C1:00.0", "0000:c1:00.0"),
        (cards.bus_id, "PCI:1:0:0", None),
        (parse.meminfo, "MemTotal: 0 kB\n", Memory()),
        (parse.meminfo, "MemTotal: 7936412\n", Memory()),
        (parse.meminfo, "MemTotal: 4 kB\nMemAvailable: 5 kB\n", Memory(4096)),
        (parse.cpu_list, "0-3,8\n", (0, 1, 2, 3, 8)),
        (parse.cpu_list, "0-4294967295\n", ()),
        (parse.cpu_list, "0,x\n", ()),
        (parse.cpu_list, "\n", ()),
        (cards.xpu_smi, '{"error": "device not found", "errno": 4}', ()),
        (cards.xpu_smi, '{"device_name": "A", "memory_physical_size_byte": ""}', (Gpu("intel", "A"),)),
        (cards.rocm_smi, '{"card0": {"Card Series": "0x744c"}}', (Gpu("amd", "AMD GPU"),)),
        (cards.rocm_smi, '{"card0": ["VRAM"], "card1": {"GFX Version": null}, "system": {}}', (Gpu("amd", "AMD GPU"),)),
        (cards.rocm_smi, "[1]", ()),
        (
            cards.rocm_smi,
            '{"card0": {"VRAM Total Memory (B)": "5", "VRAM Total Used Memory (B)": "6"}}',
            (Gpu("amd", "AMD GPU", 5, used_bytes=6),),
        ),
        (cards.system_profiler, '{"SPDisplaysDataType": [null, {"sppci_model": 5}, "x"]}', (Gpu("unknown", "5"),)),
        (cards.system_profiler, '{"SPDisplaysDataType": {"_name": "x"}}', ()),
    ],
)
def test_odd_texts(parser: Callable[[str], object], text: str, expected: object) -> None:
    assert parser(text) == expected


# -- machines made of files


def plant(root: Path, files: dict[str, str]) -> Source:
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return Source(root)


def plant_cgroup(root: Path, version: int, folders: dict[str, str]) -> Source:
    """`folders`: where each sample file of that cgroup version belongs on the machine."""
    files = {f"{folder}/{name}": text_of(f"cgroup-v{version}/{name}") for name, folder in folders.items()}
    return plant(root, files | {"proc/self/cgroup": text_of(f"cgroup-v{version}/cgroup")})


def test_a_version_2_service_is_bound_by_itself_and_its_parents(tmp_path: Path) -> None:
    own = "sys/fs/cgroup/system.slice/chat.service"
    source = plant_cgroup(tmp_path, 2, dict.fromkeys(("memory.max", "memory.current", "memory.stat", "cpu.max"), own))
    assert cgroup.memory(source) == (6 * GIB, 5 * GIB)
    assert cgroup.cores(source) == 2.0
    parent = {"memory.max": f"{4 * GIB}\n", "memory.current": f"{7 * GIB}\n", "cpu.max": "50000 100000\n"}
    plant(tmp_path, {f"sys/fs/cgroup/system.slice/{name}": text for name, text in parent.items()})
    assert cgroup.memory(source) == (4 * GIB, 0)
    assert cgroup.cores(source) == 0.5


def test_a_version_1_container_sees_its_own_group_at_the_mount(tmp_path: Path) -> None:
    memory = dict.fromkeys(("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"), "sys/fs/cgroup/memory")
    cpu = dict.fromkeys(("cpu.cfs_quota_us", "cpu.cfs_period_us"), "sys/fs/cgroup/cpu")
    source = plant_cgroup(tmp_path, 1, memory | cpu)
    assert cgroup.memory(source) == (4 * GIB, 7 * GIB // 4)
    assert cgroup.cores(source) == 1.5


def test_a_group_outside_the_namespace_is_answered_by_the_mount(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/../other\n", "sys/fs/other/memory.max": "4096\n"}
    source = plant(tmp_path, files | {"sys/fs/cgroup/memory.max": f"{GIB}\n"})
    assert cgroup.memory(source) == (GIB, GIB)


@on_linux
def test_a_container_gets_what_its_limit_leaves(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "proc/cpuinfo": text_of("cpuinfo-amd-ryzen.txt"),
            "proc/meminfo": text_of("meminfo-laptop-8gb.txt"),
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
        },
    )
    report = probe(tmp_path / "models", root=tmp_path)
    assert report.memory == Memory(7936412 << 10, GIB, 2097148 << 10, 2 * GIB)
    assert "A container or service may use only 2.00 GiB of this machine's 7.57 GiB" in report.notes
    assert report.cpu.model == "AMD Ryzen 5 7600 6-Core Processor"
    assert (report.cpu.physical_cores, report.cpu.logical_cores, report.cpu.usable_cores) == (6, 12, 0.5)


@on_linux
def test_a_limit_above_the_memory_is_no_limit(tmp_path: Path) -> None:
    meminfo = text_of("meminfo-laptop-8gb.txt")
    plant(tmp_path, {"proc/meminfo": meminfo, "sys/fs/cgroup/memory.max": f"{64 * GIB}\n"})
    assert probe(tmp_path, root=tmp_path).memory == Memory(7936412 << 10, 3871204 << 10, 2097148 << 10)


@on_linux
def test_wsl_says_whose_memory_it_is(tmp_path: Path) -> None:
    assert not any("WSL" in note for note in probe(tmp_path, root=tmp_path).notes)
    plant(tmp_path, {"proc/sys/kernel/osrelease": text_of("osrelease-wsl2.txt")})
    assert any(note.startswith("This is WSL") for note in probe(tmp_path, root=tmp_path).notes)


@on_linux
def test_the_fast_cores_of_a_hybrid_are_counted_once_each(tmp_path: Path) -> None:
    files = {
        f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list": f"{number & ~1}-{number | 1}\n"
        for number in range(16)
    }
    plant(tmp_path, files | {"sys/devices/cpu_core/cpus": text_of("cpu-list-i7-12700.txt")})
    assert probe(tmp_path, root=tmp_path).cpu.performance_cores == 8
    (tmp_path / "sys/devices/system/cpu/cpu7/topology/thread_siblings_list").unlink()
    assert probe(tmp_path, root=tmp_path).cpu.performance_cores is None


@on_linux
def test_a_processor_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    plant(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: CPU\x1b[2J\n"})
    assert probe(tmp_path, root=tmp_path).cpu.model == "CPU\\x1b[2J"


@on_linux
def test_an_empty_machine_is_full_of_notes(tmp_path: Path) -> None:
    report = probe(tmp_path, root=tmp_path / "nothing")
    assert report.cpu.model is None
    assert report.memory.limit_bytes is None
    assert "The processor's name is unknown" in report.notes


# -- this machine


def test_this_machine_is_what_psutil_and_os_say(tmp_path: Path) -> None:
    report = probe(tmp_path / "not" / "yet" / "there")
    assert report.memory.total_bytes == psutil.virtual_memory().total
    assert report.memory.swap_total_bytes == psutil.swap_memory().total
    assert report.memory.available_bytes is not None
    assert 0 < report.memory.available_bytes <= psutil.virtual_memory().total
    assert report.cpu.logical_cores == psutil.cpu_count()
    assert report.cpu.physical_cores == psutil.cpu_count(logical=False)
    assert report.cpu.usable_cores is not None
    assert 0 < report.cpu.usable_cores <= (os.cpu_count() or 1)
    assert report.disks[0].path == tmp_path / "not" / "yet" / "there"
    assert report.disks[0].total_bytes == shutil.disk_usage(tmp_path).total
    assert report.machine == os.uname().machine


def test_a_folder_that_cannot_exist_has_an_unknown_disk() -> None:
    report = probe(Path("a\0b"))
    assert report.disks[0].free_bytes is None
    assert any("does not answer" in note for note in report.notes)


def test_facts_as_json_are_plain_and_unknowns_are_null() -> None:
    report = Report(
        "Linux 6.8",
        "x86_64",
        Cpu(),
        Memory(),
        (Disk(Path("/models"), 5),),
        (Gpu("nvidia", "NVIDIA GB10"),),
        ("a note",),
    )
    engine = EngineBuild("0.3.36", True, (EngineDevice("CUDA0", "RTX 3060", "gpu"),), ("AVX2",))
    for told in (report.as_json(), engine.as_json()):
        assert json.loads(json.dumps(told)) == told
    assert list(report.as_json()) == ["os", "machine", "cpu", "memory", "disks", "gpus", "notes"]
    assert report.as_json()["disks"] == [{"path": "/models", "total_bytes": 5, "free_bytes": None}]
    assert engine.as_json()["features"] == ["AVX2"]
