"""The machine probe: captured formats against golden facts, damage sweeps, machines made of files, and this machine.

The samples in `data/hardware` have each tool's format and plausible contents; none names a real person's machine.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hardware import cgroup, gpus, parse
from hardware.probe import probe
from hardware.report import Cpu, Disk, EngineBuild, EngineDevice, Gpu, Memory, Report, plain
from hardware.source import Source

DATA = Path(__file__).parent / "data" / "hardware"
GIB = 1 << 30
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PARSERS: dict[str, Callable[[str], object]] = {
    name: function
    for name, function in inspect.getmembers(parse, inspect.isfunction)
    if function.__module__ == parse.__name__ and not name.startswith("_")
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
        (parse.bus_id, "00000000:C1:00.0", "0000:c1:00.0"),
        (parse.bus_id, "PCI:1:0:0", None),
        (parse.meminfo, "MemTotal: 0 kB\n", Memory()),
        (parse.meminfo, "MemTotal: 7936412\n", Memory()),
        (parse.rocm_smi, '{"card0": ["VRAM"], "card1": {"GFX Version": null}, "system": {}}', (Gpu("amd", "AMD GPU"),)),
        (parse.rocm_smi, "[1]", ()),
        (
            parse.rocm_smi,
            '{"card0": {"VRAM Total Memory (B)": "5", "VRAM Total Used Memory (B)": "6"}}',
            (Gpu("amd", "AMD GPU", 5),),
        ),
        (parse.system_profiler, '{"SPDisplaysDataType": [null, {"sppci_model": 5}, "x"]}', (Gpu("unknown", "5"),)),
        (parse.system_profiler, '{"SPDisplaysDataType": {"_name": "x"}}', ()),
    ],
)
def test_odd_texts(parser: Callable[[str], object], text: str, expected: object) -> None:
    assert parser(text) == expected


def test_an_intel_mac_has_a_card_with_memory_of_its_own() -> None:
    cards = [
        {"sppci_model": "Intel UHD Graphics 630", "spdisplays_vendor": "Intel", "spdisplays_vram_shared": "1536 MB"},
        {"sppci_model": "AMD Radeon Pro 5500M", "spdisplays_vendor": "sppci_vendor_amd", "spdisplays_vram": "8 GB"},
    ]
    assert parse.system_profiler(json.dumps({"SPDisplaysDataType": cards})) == (
        Gpu("intel", "Intel UHD Graphics 630"),
        Gpu("amd", "AMD Radeon Pro 5500M", total_bytes=8 * GIB, unified=False),
    )


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
    assert report.cpu.model == "AMD Ryzen 5 7600 6-Core Processor"
    assert (report.cpu.physical_cores, report.cpu.logical_cores, report.cpu.usable_cores) == (6, 12, 0.5)


@on_linux
def test_a_limit_above_the_memory_is_no_limit(tmp_path: Path) -> None:
    meminfo = text_of("meminfo-laptop-8gb.txt")
    plant(tmp_path, {"proc/meminfo": meminfo, "sys/fs/cgroup/memory.max": f"{64 * GIB}\n"})
    assert probe(tmp_path, root=tmp_path).memory == Memory(7936412 << 10, 3871204 << 10, 2097148 << 10)


@on_linux
def test_an_empty_machine_is_full_of_notes(tmp_path: Path) -> None:
    report = probe(tmp_path, root=tmp_path / "nothing")
    assert report.cpu.model is None
    assert report.memory.limit_bytes is None
    assert "The processor's name is unknown" in report.notes


# -- graphics cards

AMD_CARD = {
    "vendor": "0x1002\n",
    "device": "0x744c\n",
    "mem_info_vram_total": f"{24560 << 20}\n",
    "mem_info_vram_used": f"{1 << 20}\n",
    "mem_info_gtt_total": f"{16 * GIB}\n",
    "uevent": "DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:744C\nPCI_SLOT_NAME=0000:03:00.0\n",
}


def plant_amd(root: Path) -> Source:
    files = {f"sys/class/drm/card1/device/{name}": text for name, text in AMD_CARD.items()}
    return plant(root, files | {"sys/class/drm/card1-DP-1/status": "connected\n", "sys/class/drm/version": "drm 1.1.0"})


def plant_command(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, script: str) -> None:
    """Puts a program in front of the system's own."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_an_amd_card_is_read_from_sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (card,) = gpus.amd(plant_amd(tmp_path))
    assert card == Gpu("amd", "AMD GPU 0x744c", 24560 << 20, 24559 << 20, shared_bytes=16 * GIB, bus_id="0000:03:00.0")


def test_rocm_smi_names_the_card_at_the_same_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_command(monkeypatch, tmp_path, "rocm-smi", f"cat '{DATA / 'rocm-smi-7900xtx.json'}'")
    second = {"vendor": "0x1002\n", "uevent": "PCI_SLOT_NAME=0000:10:00.0\n"}
    plant(tmp_path, {f"sys/class/drm/card10/device/{name}": text for name, text in second.items()})
    card, graphics = gpus.amd(plant_amd(tmp_path))
    assert (card.name, card.compute_capability, card.free_bytes) == ("Radeon RX 7900 XTX", "gfx1100", 24559 << 20)
    assert (graphics.name, graphics.compute_capability) == ("AMD Radeon Graphics", "gfx1036")


RTX_3060, RTX_4090 = parse.nvidia_smi(text_of("nvidia-smi-two-cards.csv"))
(GB10,) = parse.nvidia_smi(text_of("nvidia-smi-unified.csv"))


def test_an_apple_card_may_use_what_metal_may_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_command(monkeypatch, tmp_path, "system_profiler", f"cat '{DATA / 'system-profiler-m2.json'}'")
    raised = gpus.apple(Source(), "iogpu.wired_limit_mb: 14336\n")
    assert raised == (Gpu("apple", "Apple M2", cores=10, unified=True, shared_bytes=14 * GIB),)
    source = Source()
    assert gpus.apple(source, text_of("sysctl-m2-16gb.txt"))[0].shared_bytes is None
    assert source.notes == ["How much memory Metal may use is macOS's own choice; only the engine can tell"]


class FakeNvml:
    """The calls of `pynvml` that are used, answered from a list; a card may be an error."""

    NVMLError = pynvml.NVMLError

    def __init__(self, cards: list[Gpu | Exception]) -> None:
        self.cards = cards

    def nvmlInit(self) -> None:
        if not self.cards:
            raise pynvml.NVMLError_DriverNotLoaded

    def nvmlShutdown(self) -> None:
        raise pynvml.NVMLError_Unknown

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.90.07"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        card = self.cards[index]
        if isinstance(card, Exception):
            raise card
        return card

    def nvmlDeviceGetName(self, card: Gpu) -> str:
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Gpu) -> object:
        if card.total_bytes is None:
            raise pynvml.NVMLError_NotSupported
        return SimpleNamespace(total=card.total_bytes, free=card.free_bytes)

    def nvmlDeviceGetCudaComputeCapability(self, card: Gpu) -> tuple[int, ...]:
        return tuple(int(part) for part in (card.compute_capability or "").split("."))

    def nvmlDeviceGetPciInfo(self, card: Gpu) -> object:
        return SimpleNamespace(busId=f"0000{(card.bus_id or '').upper()}")


def test_nvml_lists_what_answers_and_notes_what_does_not(tmp_path: Path) -> None:
    source = Source(tmp_path)
    found = gpus.read_nvml(FakeNvml([RTX_3060, pynvml.NVMLError_GpuIsLost(), GB10]), source)
    assert found == (RTX_3060, dataclasses.replace(GB10, driver="550.90.07"))
    assert [note.partition(":")[0] for note in source.notes] == ["NVIDIA card 1 does not answer"]
    assert gpus.read_nvml(FakeNvml([]), source) == str(pynvml.NVMLError_DriverNotLoaded())


def nvml_works() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


without_nvml = pytest.mark.skipif(nvml_works(), reason="this machine has NVML")


@without_nvml
def test_nvidia_smi_answers_where_nvml_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_command(monkeypatch, tmp_path, "nvidia-smi", f"cat '{DATA / 'nvidia-smi-two-cards.csv'}'")
    assert gpus.nvidia(Source(tmp_path)) == (RTX_3060, RTX_4090)


@without_nvml
@pytest.mark.parametrize(("device_class", "noted"), [("0x030000\n", True), ("0x040300\n", False)])
def test_a_card_without_a_driver_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device_class: str, noted: bool
) -> None:
    monkeypatch.setenv("PATH", "")
    device = "sys/bus/pci/devices/0000:01:00.0"
    source = plant(tmp_path, {f"{device}/vendor": "0x10de\n", f"{device}/class": device_class})
    assert gpus.nvidia(source) == ()
    assert bool(source.notes) is noted


@pytest.mark.skipif(not nvml_works() or not shutil.which("nvidia-smi"), reason="no NVIDIA driver here")
def test_nvml_and_nvidia_smi_agree_on_this_machine() -> None:
    source = Source()
    printed = parse.nvidia_smi(source.run("nvidia-smi", f"--query-gpu={parse.NVIDIA_QUERY}", "--format=csv"))
    facts = [[dataclasses.replace(gpu, free_bytes=None) for gpu in found] for found in (gpus.nvidia(source), printed)]
    assert [gpu.bus_id for gpu in facts[0]] == [gpu.bus_id for gpu in facts[1]]
    for ours, theirs in zip(*facts, strict=True):
        assert abs((ours.total_bytes or 0) - (theirs.total_bytes or 0)) <= 1 << 20
        assert dataclasses.replace(ours, total_bytes=None) == dataclasses.replace(theirs, total_bytes=None)


def test_a_command_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_command(monkeypatch, tmp_path, "slow-tool", "exec sleep 30")
    source = Source()
    assert source.run("slow-tool", timeout_seconds=0.2) == ""
    assert source.notes == ["`slow-tool` did not answer within 0.2 s"]
    assert source.run("no-such-tool") == ""


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
    report = Report("Linux 6.8", "x86_64", Cpu(), Memory(), (Disk(Path("/models"), 5),), (GB10,), ("a note",))
    engine = EngineBuild("0.3.36", True, (EngineDevice("CUDA0", "RTX 3060", "gpu"),), ("AVX2",))
    for told in (report.as_json(), engine.as_json()):
        assert json.loads(json.dumps(told)) == told
    assert list(report.as_json()) == ["os", "machine", "cpu", "memory", "disks", "gpus", "notes"]
    assert report.as_json()["disks"] == [{"path": "/models", "total_bytes": 5, "free_bytes": None}]
    assert engine.as_json()["features"] == ["AVX2"]
