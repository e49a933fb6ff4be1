"""Graphics cards: machines made of files, NVML by a fake that answers from a list, and this machine's own NVIDIA."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from hardware import bandwidth, cards, gpus, nvml, pci
from hardware.report import Gpu
from hardware.source import Source
from tests.test_hardware import DATA, GIB, assert_sane, plant, text_of

RTX_3060, RTX_4090 = cards.nvidia_smi(text_of("nvidia-smi-two-cards.csv"))
(GB10,) = cards.nvidia_smi(text_of("nvidia-smi-unified.csv"))


def plant_command(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, script: str) -> None:
    """Puts a program in front of the system's own."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def plant_card(root: Path, card: str, **files: str) -> Source:
    return plant(root, {f"sys/class/drm/{card}/device/{name}": f"{text}\n" for name, text in files.items()})


# -- AMD

AMD_CARD = {
    "vendor": "0x1002",
    "device": "0x744c",
    "revision": "0xc8",
    "mem_info_vram_total": f"{24560 << 20}",
    "mem_info_vram_used": f"{1 << 20}",
    "mem_info_gtt_total": f"{16 * GIB}",
    "uevent": "DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:744C\nPCI_SLOT_NAME=0000:03:00.0",
}
RX_7900_XTX = Gpu(
    "amd",
    "AMD Radeon RX 7900 XTX",
    24560 << 20,
    24559 << 20,
    used_bytes=1 << 20,
    driver="amdgpu",
    unified=False,
    shared_bytes=16 * GIB,
    bus_id="0000:03:00.0",
)


def plant_amd(root: Path) -> Source:
    plant(root, {"sys/class/drm/card1-DP-1/status": "connected\n", "sys/class/drm/version": "drm 1.1.0"})
    return plant_card(root, "card1", **AMD_CARD)


def test_an_amd_card_is_read_from_sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpus.amd(plant_amd(tmp_path)) == (RX_7900_XTX,)
    plant_card(tmp_path, "card1", revision="0x99")
    assert gpus.amd(Source(tmp_path))[0].name == "AMD GPU 0x744c"
    plant_card(tmp_path, "card1", product_name="Radeon PRO W7900")
    assert gpus.amd(Source(tmp_path))[0].name == "Radeon PRO W7900"


def test_rocm_smi_names_the_card_at_the_same_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_command(monkeypatch, tmp_path / "bin", "rocm-smi", f"cat '{DATA / 'rocm-smi-7900xtx.json'}'")
    plant_card(tmp_path, "card10", vendor="0x1002", uevent="PCI_SLOT_NAME=0000:10:00.0")
    card, graphics = gpus.amd(plant_amd(tmp_path))
    assert (card.name, card.compute_capability, card.free_bytes) == ("Radeon RX 7900 XTX", "gfx1100", 24559 << 20)
    assert (graphics.name, graphics.compute_capability) == ("AMD Radeon Graphics", "gfx1036")


def test_an_integrated_amd_uses_the_main_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    source = plant_card(
        tmp_path,
        "card0",
        vendor="0x1002",
        device="0x15bf",
        mem_info_vram_total=f"{GIB // 2}",
        mem_info_vram_used=f"{GIB // 4}",
        mem_info_gtt_total=f"{14 * GIB}",
    )
    expected = Gpu("amd", "AMD Radeon 740M / 760M / 780M Graphics", unified=True, shared_bytes=14 * GIB)
    assert gpus.amd(source) == (expected,)
    plant_card(tmp_path, "card0", device="0x1586", revision="0xc1", mem_info_vram_total=f"{96 * GIB}")
    (strix_halo,) = gpus.linux(Source(tmp_path))
    assert (strix_halo.name, strix_halo.total_bytes) == ("AMD Radeon 8060S Graphics", 96 * GIB)
    assert (strix_halo.unified, strix_halo.bandwidth_bytes_per_second) == (False, 256 * 10**9)


# -- Intel


def plant_intel(root: Path, card: str, device: str, address: str, driver: str = "i915") -> Source:
    uevent = f"DRIVER={driver}\nPCI_CLASS=30000\nPCI_SLOT_NAME={address}"
    return plant_card(root, card, vendor="0x8086", device=device, **{"class": "0x030000"}, uevent=uevent)


@pytest.mark.parametrize(
    ("device", "address", "name", "unified"),
    [
        ("0x9a49", "0000:00:02.0", "Intel Iris Xe Graphics", True),
        ("0x7d55", "0000:00:02.0", "Intel Arc Graphics", True),
        ("0xffff", "0000:00:02.0", "Intel GPU 0xffff", True),
        ("0xffff", "0000:05:00.0", "Intel GPU 0xffff", None),
        ("0xe20b", "0000:00:02.0", "Intel Arc B580", None),
    ],
)
def test_an_intel_card_is_read_from_sysfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, address: str, name: str, unified: bool | None
) -> None:
    monkeypatch.setenv("PATH", "")
    source = plant_intel(tmp_path, "card0", device, address, "xe")
    assert gpus.intel(source) == (Gpu("intel", name, driver="xe", unified=unified, bus_id=address),)


def test_an_intel_device_that_shows_no_picture_is_no_card(tmp_path: Path) -> None:
    assert gpus.intel(plant_card(tmp_path, "card0", vendor="0x8086", **{"class": "0x120000"})) == ()


def test_xpu_smi_tells_the_memory_of_the_card_at_the_same_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = DATA / "xpu-smi-arc-a770.json"
    tool = f"""[ "$3" = 0000:03:00.0 ] && exec cat '{sample}'; echo '{{"error": "none"}}'; exit 1"""
    plant_command(monkeypatch, tmp_path / "bin", "xpu-smi", tool)
    plant_intel(tmp_path, "card0", "0x46a6", "0000:00:02.0")
    plant_intel(tmp_path, "card1", "0x56a0", "0000:03:00.0")
    source = plant_intel(tmp_path, "card2", "0xe20b", "0000:04:00.0")
    integrated, arc_a770, arc_b580 = gpus.linux(source)
    assert integrated.unified
    assert (arc_a770.name, arc_a770.driver, arc_a770.unified) == ("Intel Arc A770", "i915", False)
    assert (arc_a770.total_bytes, arc_a770.free_bytes) == (16225243136, 15836119040)
    assert (arc_a770.used_bytes, arc_a770.bandwidth_bytes_per_second) == (389124096, 560 * 10**9)
    assert (arc_b580.total_bytes, arc_b580.bandwidth_bytes_per_second) == (None, 456 * 10**9)
    assert "`xpu-smi` failed with exit status 1" in source.notes


# -- Apple


@pytest.mark.parametrize(
    ("memory_gib", "limit_mib", "shared_bytes", "noted"),
    [
        (16, 14336, 14 * GIB, False),
        (16, 0, 16 * GIB * 2 // 3, True),
        (36, 0, 27 * GIB, True),  # what Metal itself says on such a machine
        (16, 65536, 16 * GIB, False),
    ],
)
def test_metal_may_use_a_share_of_the_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory_gib: int,
    limit_mib: int,
    shared_bytes: int,
    noted: bool,
) -> None:
    plant_command(monkeypatch, tmp_path, "system_profiler", f"cat '{DATA / 'system-profiler-m2.json'}'")
    source = Source(tmp_path)
    sysctl = f"hw.memsize: {memory_gib * GIB}\niogpu.wired_limit_mb: {limit_mib}\n"
    expected = Gpu("apple", "Apple M2", cores=10, unified=True, shared_bytes=shared_bytes)
    assert gpus.mac(source, sysctl) == (dataclasses.replace(expected, bandwidth_bytes_per_second=100 * 10**9),)
    assert any("only the engine's Metal device knows" in note for note in source.notes) is noted


def test_apple_silicon_has_a_card_whatever_system_profiler_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_command(monkeypatch, tmp_path, "system_profiler", "echo garbage")
    source = Source(tmp_path)
    (card,) = gpus.mac(source, text_of("sysctl-m3-max-36gb.txt"))
    assert card == Gpu("apple", "Apple M3 Max", unified=True, shared_bytes=32 * GIB)
    assert source.notes == ["What `system_profiler` printed describes no graphics card"]
    assert gpus.mac(Source(tmp_path), "hw.memsize: 1\n") == ()


# -- NVIDIA


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
        return SimpleNamespace(total=card.total_bytes, free=card.free_bytes, used=card.used_bytes)

    def nvmlDeviceGetMaxClockInfo(self, card: Gpu, kind: int) -> int:
        if kind != pynvml.NVML_CLOCK_MEM or card is not RTX_4090:
            raise pynvml.NVMLError_NotSupported
        return 10501

    def nvmlDeviceGetMemoryBusWidth(self, card: Gpu) -> int:
        return 384 if card.total_bytes else 0

    def nvmlDeviceGetCudaComputeCapability(self, card: Gpu) -> tuple[int, ...]:
        return tuple(int(part) for part in (card.compute_capability or "").split("."))

    def nvmlDeviceGetPciInfo(self, card: Gpu) -> object:
        return SimpleNamespace(busId=f"0000{(card.bus_id or '').upper()}")


def test_nvml_lists_what_answers_and_notes_what_does_not(tmp_path: Path) -> None:
    source = Source(tmp_path)
    found = nvml.read(FakeNvml([RTX_4090, pynvml.NVMLError_GpuIsLost(), GB10]), source)
    rtx_4090 = dataclasses.replace(RTX_4090, bandwidth_bytes_per_second=1_008_096_000_000)
    assert found == (rtx_4090, dataclasses.replace(GB10, driver="550.90.07"))
    assert [note.partition(":")[0] for note in source.notes] == ["NVIDIA card 1 does not answer"]
    assert nvml.read(FakeNvml([]), source) == str(pynvml.NVMLError_DriverNotLoaded())


@pytest.fixture
def without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is there, its driver is not."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([]))  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_nvml")
@pytest.mark.parametrize("status", [0, 14])
def test_nvidia_smi_answers_where_nvml_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    script = f"cat '{DATA / 'nvidia-smi-two-cards.csv'}'; exit {status}"
    plant_command(monkeypatch, tmp_path / "bin", "nvidia-smi", script)
    assert gpus.nvidia(Source(tmp_path)) == (RTX_3060, RTX_4090)
    speeds = [card.bandwidth_bytes_per_second for card in gpus.linux(Source(tmp_path))]
    assert speeds == [360 * 10**9, 1008 * 10**9]


@pytest.mark.usefixtures("without_nvml")
@pytest.mark.parametrize(("device_class", "noted"), [("0x030000\n", True), ("0x040300\n", False)])
def test_a_card_without_a_driver_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device_class: str, noted: bool
) -> None:
    monkeypatch.setenv("PATH", "")
    device = "sys/bus/pci/devices/0000:01:00.0"
    source = plant(tmp_path, {f"{device}/vendor": "0x10de\n", f"{device}/class": device_class})
    assert gpus.nvidia(source) == ()
    assert bool(source.notes) is noted


def nvml_works() -> bool:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


@pytest.mark.skipif(not nvml_works() or not shutil.which("nvidia-smi"), reason="no NVIDIA driver here")
def test_nvml_and_nvidia_smi_agree_on_this_machine() -> None:
    source = Source()
    printed = cards.nvidia_smi(source.run("nvidia-smi", f"--query-gpu={cards.NVIDIA_QUERY}", "--format=csv"))
    asked = gpus.nvidia(source)
    assert [gpu.bus_id for gpu in asked] == [gpu.bus_id for gpu in printed]
    for ours, theirs in zip(asked, printed, strict=True):
        assert abs((ours.total_bytes or 0) - (theirs.total_bytes or 0)) <= 1 << 20
        same = ("name", "driver", "compute_capability", "unified")
        assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]


# -- what makes no sense, and what names tell


@pytest.mark.parametrize(
    "card",
    [
        Gpu("nvidia", "x", total_bytes=9 << 40, free_bytes=1, used_bytes=1, bandwidth_bytes_per_second=10**15),
        Gpu("nvidia", "x", total_bytes=-1, free_bytes=-2, used_bytes=0, bandwidth_bytes_per_second=-5),
        Gpu("nvidia", "x", total_bytes=None, free_bytes=5, used_bytes=5),
    ],
)
def test_what_cannot_be_is_unknown(card: Gpu) -> None:
    assert cards.checked(card) == Gpu("nvidia", "x")


def test_more_free_than_there_is_leaves_the_total() -> None:
    card = Gpu("amd", "x\x1b[2J\n\u202e" + "y" * 500, 8 * GIB, 9 * GIB, 10 * GIB, driver="\x07", shared_bytes=-1)
    assert_sane(cards.checked(card))
    assert cards.checked(card).name.startswith("x\\x1b[2J\\x0a\\x202ey")
    assert dataclasses.replace(cards.checked(card), name="", driver=None) == Gpu("amd", "", 8 * GIB)


@pytest.mark.parametrize(
    ("name", "cores", "gb_per_second"),
    [
        ("NVIDIA GeForce RTX 4090", None, 1008),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, 576),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", None, 672),
        ("Radeon RX 7900 XTX", None, 960),
        ("AMD Radeon RX 7900 XT", None, 800),
        ("Intel(R) Arc(TM) A770 Graphics", None, 560),
        ("Apple M3 Max", 30, 300),
        ("Apple M3 Max", 40, 400),
        ("Apple M4 Max", 40, 546),
        ("Apple M4 Max", None, None),
        ("AMD Radeon Graphics", None, None),
        ("Navi 31 [Radeon RX 7900 XT/7900 XTX]", None, None),
        ("", None, None),
    ],
)
def test_names_tell_how_fast_the_memory_is(name: str, cores: int | None, gb_per_second: int | None) -> None:
    expected = gb_per_second * 10**9 if gb_per_second else None
    assert bandwidth.bytes_per_second(name, cores) == expected


def test_cards_known_by_their_pci_identity_have_a_known_speed() -> None:
    names = [pci.amd_name(f"0x{device}", f"0x{revision}") for device, revision in (("744c", "cc"), ("7550", "c0"))]
    names += [pci.intel_name(device) for device in ("0x56a0", "0x56a1", "0x56a2", "0x56a5", "0xe20b", "0xe20c")]
    assert all(bandwidth.bytes_per_second(name) for name in names), names
    assert json.dumps(names).count("GPU") == 0
