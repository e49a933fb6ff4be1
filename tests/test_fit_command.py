"""`fit`, `bench` and what `show` and `chat` say of them, as a user meets them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from phi4local.actions.fit import _stored
from phi4local.catalog import find_model
from phi4local.cli.fit import _bar
from phi4local.errors import FormatError
from phi4local.fit import Use
from phi4local.settings import nano_folder
from quant.config import read_config
from quant.ggml import BUILDS
from tests.running import json_of, phi4local

FIT_KEYS = {"machine", "model", "context", "kv_type", "builds", "recommended", "why"}
BUILD_KEYS = {
    *("build", "format", "file_bytes", "weights_bytes", "kv_bytes", "compute_bytes", "total_bytes"),
    *("where", "gpu_layers", "expected_tps", "installed", "ready_made"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home with two builds of the built-in model."""
    folder = tmp_path_factory.mktemp("shared")
    env = {"PHI4LOCAL_HOME": str(folder)}
    for build in ("Q8_0", "Q4_K_M"):
        json_of(phi4local("quantize", nano_folder(), "--to", build, "--json", env=env))
    return env


def test_every_build_of_a_model_nobody_has_here(home: Path) -> None:
    answer = json_of(phi4local("fit", "phi-4", "--json"))
    assert answer.keys() >= FIT_KEYS
    builds = {build["build"]: build for build in answer["builds"]}
    assert builds.keys() >= BUILDS.keys() | {"mlx-4bit", "mlx-8bit"}
    for build in builds.values():
        assert build.keys() >= BUILD_KEYS
        assert build["total_bytes"] == build["weights_bytes"] + build["kv_bytes"] + build["compute_bytes"]
    assert (answer["context"], answer["kv_type"]) == (8192, "f16")
    assert builds["Q4_K_M"]["kv_bytes"] == 8192 * 204_800
    phi4 = find_model("phi-4")
    assert phi4
    for name, published in phi4.described.items():
        assert abs(builds[name]["file_bytes"] - published.bytes) <= (published.bytes or 0) / 1000
        assert builds[name]["ready_made"]
    assert [path.name for path in home.iterdir()] == ["state"]


def test_context_and_cache_type_change_the_cache(home: Path) -> None:
    answer = json_of(phi4local("fit", "phi-4-mini:q4_k_m", "--context", "16k", "--kv", "q8_0", "--json"))
    assert [build["build"] for build in answer["builds"]] == ["Q4_K_M"]
    assert answer["builds"][0]["kv_bytes"] == 16384 * 131_072 * 34 // 64
    assert answer["model"] == "phi-4-mini"


def test_a_folder_of_weights_and_a_file(tiny: Path, shared: dict[str, str]) -> None:
    answer = json_of(phi4local("fit", tiny, "--json"))
    assert answer["model"] == "phi-4-tiny"
    assert {build["build"] for build in answer["builds"] if build["format"] == "gguf"} == BUILDS.keys()
    path = Path(shared["PHI4LOCAL_HOME"]) / "models" / "phi4-nano" / "phi4-nano-Q8_0.gguf"
    (build,) = json_of(phi4local("fit", path, "--json"))["builds"]
    assert (build["file_bytes"], build["where"] != "none") == (path.stat().st_size, True)


def test_builds_that_are_here_are_marked(shared: dict[str, str]) -> None:
    answer = json_of(phi4local("fit", "phi4-nano", "--json", env=shared))
    assert {build["build"] for build in answer["builds"] if build["installed"]} == {"Q8_0", "Q4_K_M"}
    assert answer["recommended"] == "Q8_0"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["phi-5"], 3, "hint: phi4local fit phi-4"),
        (["phi-4:Q9"], 2, "No build called `Q9`"),
        (["phi-4", "--context", "16385"], 2, "was trained for 16384"),
        (["phi-4", "--kv", "q3"], 2, "invalid choice: 'q3'"),
        (["phi-4", "--context", "0"], 2, "is not a number of tokens"),
        (["./absent.gguf"], 3, "No file `absent.gguf`"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], code: int, said: str) -> None:
    refused = phi4local("fit", *arguments)
    assert refused.returncode == code
    assert said in refused.stderr


def test_the_table_fits_a_terminal() -> None:
    told = phi4local("fit", "phi-4")
    assert told.returncode == 0
    table = [line for line in told.stdout.splitlines() if line.startswith((">", " ", "build"))]
    assert len(table) == len(BUILDS) + 1
    assert max(map(len, table)) <= 80
    assert "is the best quality that fits" in told.stdout or "Nothing fits" in told.stdout


@pytest.mark.parametrize(
    ("use", "fits", "drawn"),
    [
        (Use(8, 4, 2), True, "wwwwwwwwkkkkcc.."),
        (Use(16, 0, 0), True, "wwwwwwwwwwwwwwww"),
        (Use(30, 4, 2), False, "wwwwwwwwwwwwwww!"),
        (Use(), True, ""),
    ],
)
def test_a_bar_shows_what_the_memory_goes_to(use: Use, fits: bool, drawn: str) -> None:
    assert _bar(use, 16, fits=fits) == drawn


def test_bench_measures_and_corrects_later_predictions(shared: dict[str, str]) -> None:
    result = json_of(phi4local("bench", "phi4-nano:Q4_K_M", "--json", env=shared))
    assert (result["name"], result["build"]) == ("phi4-nano", "Q4_K_M")
    assert result["measured"]["generation_tps"] > 0
    assert result["predicted"]["generation_tps"] > 0
    assert result["slowest_tps"] <= result["measured"]["generation_tps"] <= result["fastest_tps"]
    answer = json_of(phi4local("fit", "phi4-nano:Q4_K_M", "--json", env=shared))
    (build,) = answer["builds"]
    assert build["measured_tps"] == result["measured"]["generation_tps"]
    assert abs(build["expected_tps"] / build["measured_tps"] - 1) < 0.1
    shown = json_of(phi4local("show", "phi4-nano:Q4_K_M", "--json", env=shared))
    assert shown["benchmarks"][0]["measured"] == result["measured"]
    assert shown["load"]["took_bytes"] > 0


def test_chat_says_what_it_chose_and_show_remembers(shared: dict[str, str]) -> None:
    told = phi4local("chat", "phi4-nano", "-p", "What is 17 + 25?", "--context", "1024", "--kv", "q8_0", env=shared)
    assert told.returncode == 0, told.stderr
    assert told.stdout == "17 + 25 = 42.\n"
    assert "phi4-nano:Q8_0 on llama.cpp" in told.stderr
    assert "context 1024 tokens, KV cache q8_0: takes" in told.stderr
    assert "Q8_0 is the best quality that fits" in told.stderr
    load = json_of(phi4local("show", "phi4-nano:Q8_0", "--json", env=shared))["load"]
    assert (load["context_tokens"], load["kv_type"]) == (1024, "q8_0")
    assert abs(load["took_bytes"] - load["predicted_bytes"]) <= load["predicted_bytes"] / 100
    assert "Last load" in phi4local("show", "phi4-nano:Q8_0", env=shared).stdout


@pytest.fixture
def talk(shared: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[pexpect.spawn]:
    monkeypatch.setenv("PHI4LOCAL_HOME", shared["PHI4LOCAL_HOME"])
    monkeypatch.setenv("TERM", "dumb")
    arguments = ["-m", "phi4local", "chat", "phi4-nano:Q8_0"]
    child = pexpect.spawn(sys.executable, arguments, encoding="utf-8", timeout=60)
    yield child
    child.close(force=True)


def test_another_model_goes_on_with_the_conversation(talk: pexpect.spawn) -> None:
    talk.expect("phi4-nano:Q8_0 on llama.cpp")
    talk.expect(">>> ")
    talk.sendline("/model phi4-nano:Q9")
    talk.expect("error: No build `Q9`")
    talk.expect(">>> ")
    talk.sendline("/model phi4-nano:Q4_K_M")
    talk.expect("phi4-nano:Q4_K_M on llama.cpp")
    talk.expect(">>> ")
    talk.sendline("Hello")
    talk.expect("Hello! How can I help you?")
    talk.sendline("/exit")
    talk.expect(pexpect.EOF)


def test_a_model_that_cannot_be_opened_leaves_the_present_one(talk: pexpect.spawn, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    talk.expect(">>> ")
    talk.sendline(f"/model {broken}")
    talk.expect("error: ")
    talk.expect(">>> ")
    talk.sendline("Hello")
    talk.expect("Hello! How can I help you?")


def test_a_folder_does_not_hide_a_model_of_its_name(
    shared: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "phi4-nano").mkdir()
    monkeypatch.chdir(tmp_path)
    env = shared | {"PYTHONPATH": str(Path(__file__).parents[1])}
    assert json_of(phi4local("fit", "phi4-nano", "--json", env=env))["recommended"] == "Q8_0"


def test_a_file_is_asked_about_as_chat_would_open_it(shared: dict[str, str], tmp_path: Path) -> None:
    path = Path(shared["PHI4LOCAL_HOME"]) / "models" / "phi4-nano" / "phi4-nano-Q8_0.gguf"
    refused = phi4local("fit", path, "--context", "5000")
    assert (refused.returncode, "was trained for 4096" in refused.stderr) == (2, True)
    cut = tmp_path / "my cut.gguf"
    cut.write_bytes(path.read_bytes()[:1000])
    assert phi4local("fit", cut).returncode == 5
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    assert "config.json" in phi4local("fit", folder).stderr


def test_a_damaged_build_does_not_hide_the_others(shared: dict[str, str], tiny: Path, tmp_path: Path) -> None:
    whole = Path(shared["PHI4LOCAL_HOME"]) / "models" / "phi4-nano" / "phi4-nano-Q8_0.gguf"
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:1000])
    subject = _stored("x", {"Q2_K": cut, "Q8_0": whole}, {"mlx-4bit": cut})
    assert subject.header_bytes > 1000
    assert subject.config == subject.shape == _stored("x", {"Q8_0": whole}, {}).config
    subject = _stored("x", {"Q2_K": cut}, {"mlx-2bit": tmp_path / "absent", "mlx-4bit": tiny})
    assert (subject.config, subject.files, subject.header_bytes) == (read_config(tiny), {"Q2_K": cut}, 0)
    with pytest.raises(FormatError, match="cut"):
        _stored("x", {"Q2_K": cut}, {"mlx-4bit": tmp_path})


def test_mlx_builds_have_names() -> None:
    (build,) = json_of(phi4local("fit", "phi-4:mlx-4bit", "--json"))["builds"]
    assert (build["format"], round(build["file_bytes"] / 1e9, 2)) == ("mlx", 8.25)


def test_a_damaged_memory_of_measurements_is_measured_again(home: Path) -> None:
    file = home / "state" / "measured.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"engine": ')
    answer = json_of(phi4local("fit", "phi-4:Q4_K_M", "--json"))
    assert answer["builds"][0]["expected_tps"] or answer["builds"][0]["where"] == "none"
    assert json.loads(file.read_text())["rates"]["types"].keys() >= {"Q4_K", "Q6_K", "Q8_0", "BF16"}
