"""Tools that hang, flood, fail or leave children: a probe costs two seconds at most, says so, and leaves nothing."""

from __future__ import annotations

import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pynvml
import pytest

from hardware import gpus
from hardware.probe import probe
from hardware.report import Gpu, Report
from hardware.source import Source
from tests.test_gpus import RX_7900_XTX, FakeNvml, plant_amd, plant_command, plant_intel
from tests.test_hardware import DATA, GIB, on_linux, plant

TOOLS = ("nvidia-smi", "rocm-smi", "xpu-smi")
BOUND_SECONDS = 3.5  # two, and slack for a machine that is busy with something else

# What goes wrong with a tool: what it runs, and what the note about it says.
FAULTS = {
    "hangs": ("echo $$ >> '{pids}'\nsleep 60 &\necho $! >> '{pids}'\nwait", "did not answer in time"),
    "ends but its child holds the pipe": ("sleep 60 &\necho $! >> '{pids}'\nexit 9", "exit status 9"),
    "ignores polite signals": ("trap '' TERM INT HUP\necho $$ >> '{pids}'\nsleep 60", "did not answer in time"),
    "prints garbage": ("head -c 5000 /dev/urandom", "describes no graphics card"),
    "prints 100 MB": ("echo $$ >> '{pids}'\nhead -c 100000000 /dev/zero", "printed more than"),
    "prints without end": ("echo $$ >> '{pids}'\nyes", "printed more than"),
    "prints drop by drop": ("echo $$ >> '{pids}'\nwhile :; do echo x; sleep 0.2; done", "did not answer in time"),
    "fails": ("echo 'name, memory.total [MiB]'; echo 'A lie, 5 MiB'; exit 9", "exit status 9"),
    "kills itself": ("kill -9 $$", "signal 9"),
}


@pytest.fixture(autouse=True)
def without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is there, its driver is not; so nvidia-smi is asked."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([]))  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """One with an AMD and an Intel card, whose tools are therefore asked."""
    plant_amd(tmp_path)
    plant_intel(tmp_path, "card2", "0x56a0", "0000:04:00.0")
    return tmp_path


def timed_probe(root: Path) -> Report:
    start = time.monotonic()
    report = probe(root, root=root)
    assert time.monotonic() - start < BOUND_SECONDS
    return report


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # one that its new parent has yet to reap is dead
    except psutil.NoSuchProcess:
        return False


@on_linux
@pytest.mark.parametrize("fault", FAULTS)
def test_bad_tools_cost_two_seconds_and_a_note(machine: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    script, said = FAULTS[fault]
    pids = machine / "pids"
    for name in TOOLS:
        plant_command(monkeypatch, machine / "bin", name, script.format(pids=pids))
    report = timed_probe(machine)
    for name in TOOLS:
        assert any(f"`{name}`" in note and said in note for note in report.notes), (name, report.notes)
    assert [card.name for card in report.gpus] == ["AMD Radeon RX 7900 XTX", "Intel Arc A770"]
    assert report.gpus[0].total_bytes == RX_7900_XTX.total_bytes
    started = [int(pid) for pid in pids.read_text().split()] if pids.exists() else []
    time.sleep(0.1)
    assert [pid for pid in started if is_alive(pid)] == []
    assert psutil.Process().children() == []


@on_linux
def test_a_tool_that_hangs_does_not_eat_the_turn_of_the_others(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sample in (("rocm-smi", "rocm-smi-7900xtx.json"), ("nvidia-smi", "nvidia-smi-two-cards.csv")):
        plant_command(monkeypatch, machine / "bin", name, f"cat '{DATA / sample}'")
    plant_command(monkeypatch, machine / "bin", "xpu-smi", "exec sleep 60")
    report = timed_probe(machine)
    assert [card.vendor for card in report.gpus] == ["nvidia", "nvidia", "amd", "intel"]
    assert report.gpus[2].compute_capability == "gfx1100"
    assert [note for note in report.notes if "in time" in note] == ["`xpu-smi` did not answer in time"]


def test_what_a_tool_said_before_it_left_a_child_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_command(monkeypatch, tmp_path, "tool", "sleep 60 &\necho $!")
    start, source = time.monotonic(), Source()
    child = int(source.run("tool"))
    assert time.monotonic() - start < BOUND_SECONDS / 2
    assert source.notes == []
    time.sleep(0.1)
    assert not is_alive(child)


def test_all_tools_share_one_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_command(monkeypatch, tmp_path, "slow-tool", "exec sleep 60")
    plant_command(monkeypatch, tmp_path, "fast-tool", "echo here")
    start, source = time.monotonic(), Source(deadline=time.monotonic() + 0.3)
    assert [source.run(name) for name in ("slow-tool", "fast-tool", "no-such-tool")] == ["", "", ""]
    assert time.monotonic() - start < BOUND_SECONDS / 2
    assert source.notes == ["`slow-tool` did not answer in time", "`fast-tool` did not answer in time"]


def test_a_status_is_trusted_only_where_the_caller_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_command(monkeypatch, tmp_path, "tool", "echo here; exit 1")
    source = Source()
    assert source.run("tool", trusted=(0, 1)) == "here\n"
    assert source.run("tool") == ""
    assert source.notes == ["`tool` failed with exit status 1"]


def test_a_program_that_is_none_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_command(monkeypatch, tmp_path, "tool", "")
    (tmp_path / "tool").write_bytes(b"\x7fELF nonsense")
    source = Source()
    assert source.run("tool") == ""
    assert source.notes[0].startswith("`tool` could not be run")


class HangingNvml(FakeNvml):
    """A driver that never comes back."""

    def __init__(self, released: threading.Event) -> None:
        super().__init__([])
        self.released = released

    def nvmlInit(self) -> None:
        self.released.wait(60)
        raise pynvml.NVMLError_Unknown


@pytest.fixture
def hanging_nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    released = threading.Event()
    before = threading.active_count()
    monkeypatch.setitem(sys.modules, "pynvml", HangingNvml(released))  # type: ignore[arg-type]
    yield
    released.set()
    while threading.active_count() > before:
        time.sleep(0.01)


@on_linux
@pytest.mark.usefixtures("hanging_nvml")
def test_a_driver_that_hangs_is_left_alone(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    report = timed_probe(machine)
    assert "NVIDIA's driver did not answer in time" in report.notes
    assert [card.vendor for card in report.gpus] == ["amd", "intel"]


def test_a_mac_is_known_from_its_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    sysctl = f"cat '{DATA / 'sysctl-m3-max-36gb.txt'}'; echo \"sysctl: unknown oid 'iogpu'\" >&2; exit 1"
    plant_command(monkeypatch, tmp_path, "sysctl", sysctl)
    plant_command(monkeypatch, tmp_path, "system_profiler", "exec sleep 60")
    report = timed_probe(tmp_path)
    assert (report.cpu.model, report.cpu.physical_cores, report.cpu.performance_cores) == ("Apple M3 Max", 14, 10)
    assert report.memory.total_bytes == 36 * GIB
    assert report.gpus == (Gpu("apple", "Apple M3 Max", unified=True, shared_bytes=32 * GIB),)
    assert "`system_profiler` did not answer in time" in report.notes


def test_notes_and_answers_keep_their_order(tmp_path: Path) -> None:
    def question(number: int, source: Source) -> tuple[int, ...]:
        time.sleep(0.05 * (3 - number))
        source.note(f"{number}\x1b")
        return (number, number)

    source = Source(tmp_path)
    found = source.together({str(n): lambda own, n=n: question(n, own) for n in (1, 2, 3)})
    assert found == (1, 1, 2, 2, 3, 3)
    assert source.notes == ["1\\x1b", "2\\x1b", "3\\x1b"]


def test_a_huge_file_is_read_in_part(tmp_path: Path) -> None:
    source = plant(tmp_path, {"proc/version": "x" * (9 << 20)})
    assert len(source.read("proc/version")) == 8 << 20
    assert gpus.linux(source) == ()
