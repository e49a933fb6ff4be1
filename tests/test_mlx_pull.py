"""`phi4local pull NAME:mlx-...`: a published folder as it should be, whatever the network and the publisher do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phi4local.actions import bench
from phi4local.actions.chat import Located
from phi4local.actions.fit import fit_files
from phi4local.backends.safe_mode import machine_and_build
from phi4local.measured import keep_benchmark
from phi4local.speed import Benchmark, Speed
from tests.hub import Fault, Hub
from tests.mlx_pulling import SHARDS, SMALL, check_whole, folder_of, get
from tests.pulling import (
    MLX,
    MLX_BUILD,
    OFFICIAL,
    OLD_END,
    Client,
    catalog,
    client,
    grown,
    publish_mlx,
    sha256,
    wait_for,
)
from tests.running import json_of

pytest.importorskip("mlx.core")
CONTRACT = {
    *("name", "build", "path", "bytes", "sha256", "bpw", "types", "repairs", "source", "files"),
    *("downloaded_bytes", "resumed_bytes", "seconds"),
}


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A hub's folder with the official weights and an MLX build of them. Not to be changed."""
    folder = tmp_path_factory.mktemp("mlx-hub")
    shutil.copytree(root / OFFICIAL, folder / OFFICIAL)
    publish_mlx(folder)
    return folder


@pytest.fixture
def hub(published: Path) -> Iterator[Hub]:
    with Hub(published) as running:
        yield running


@pytest.fixture
def user(hub: Hub, home: Path) -> Client:
    return client(hub, home, catalog(repository=MLX))


# -- a good day


def test_a_published_folder(hub: Hub, user: Client) -> None:
    found = json_of(get(user))
    assert found.keys() >= CONTRACT
    assert (found["name"], found["build"], found["format"], found["path"]) == (
        "nano",
        "mlx-4bit",
        "mlx",
        str(folder_of(user)),
    )
    check_whole(user, hub, found)
    source = found["source"]
    assert (source["repo"], source["revision"], source["from"]) == (MLX, hub.sha(MLX), "ready")
    sizes = {path.name: path.stat().st_size for path in (hub.root / MLX).iterdir()}
    assert {file["name"]: file["bytes"] for file in source["files"]} == {
        name: sizes[name] for name in [*SMALL, *SHARDS]
    }
    assert {file["name"]: file["sha256"] for file in source["files"]} == {
        name: sha256(hub.root / MLX / name) for name in [*SMALL, *SHARDS]
    }
    assert found["downloaded_bytes"] == sum(sizes[name] for name in [*SMALL, *SHARDS])
    assert (found["types"], round(found["bpw"], 1)) == ({"4-bit": 18, "BF16": 9}, 4.5)
    assert json_of(user.run("verify", "--json")) == {"checked": 1, "damaged": []}
    assert [one["build"] for one in json_of(user.run("list", "--json"))] == ["mlx-4bit"]


def test_nothing_that_could_run_is_asked_for(hub: Hub, user: Client) -> None:
    json_of(get(user))
    asked = {request.path.partition("?")[0].rsplit("/", 1)[-1] for request in hub.requests if "resolve" in request.path}
    assert asked == {*SMALL, *SHARDS}


def test_the_end_of_turn_is_mended_and_the_manifest_says_so(user: Client) -> None:
    found = json_of(get(user))
    keys = {repair["key"] for repair in found["repairs"]}
    assert keys >= {
        "config.json pad_token_id",
        "generation_config.json eos_token_id",
        "tokenizer_config.json eos_token",
    }
    folder = folder_of(user)
    end = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in end}
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"][0] == ids["<|im_end|>"]
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    assert json.loads((folder / "config.json").read_text())["quantization"]["bits"] == 4


def test_mlx_lm_loads_what_came(user: Client) -> None:
    import mlx.core as core
    from mlx_lm.utils import load_model

    json_of(get(user))
    model, config = load_model(folder_of(user), strict=True)
    assert OLD_END not in config["eos_token_id"][:1]
    logits = model(core.array([[1, 2, 3]]))
    assert core.isfinite(logits).all().item()


def test_again_is_no_work(hub: Hub, user: Client) -> None:
    first = json_of(get(user))
    asked = len(hub.requests)
    second = json_of(get(user))
    assert len(hub.requests) == asked
    assert (second["sha256"], second["downloaded_bytes"]) == (first["sha256"], 0)
    assert "here already" in user.run("pull", MLX_BUILD).stderr


def test_without_a_source_it_is_made_here_and_is_what_quantize_makes(hub: Hub, user: Client, tmp_path: Path) -> None:
    made = json_of(user.run("quantize", hub.root / OFFICIAL, "--to", "mlx-4bit", "--out", tmp_path / "own", "--json"))
    pulled = user.run("pull", MLX_BUILD, "--json")
    found = json_of(pulled)
    assert {key: found[key] for key in ("bytes", "sha256", "types", "files")} == {
        key: made[key] for key in ("bytes", "sha256", "types", "files")
    }
    assert found["source"]["from"] == "official"
    assert "nobody has checked the published folder" in pulled.stderr
    if sys.platform == "linux":
        assert "MLX runs on the processor only, slowly" in pulled.stderr


def test_a_dry_run_names_the_files_and_gets_none(hub: Hub, user: Client) -> None:
    found = json_of(get(user, "--dry-run"))
    assert [file["name"] for file in found["source"]["files"]][-2:] == SHARDS
    assert found["bytes"] == sum((hub.root / MLX / name).stat().st_size for name in [*SMALL, *SHARDS])
    assert (hub.sent_bytes(), (user.home / "models").exists()) == (0, False)


def test_making_needs_mlx_and_getting_does_not(user: Client, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text('import sys\nsys.modules["mlx_lm"] = None\n')
    without = {"PYTHONPATH": str(tmp_path / "without")}
    refused = get(user, source="official", **without)
    assert refused.returncode == 7
    assert "pip install 'phi4local[mlx]'" in refused.stderr
    pulled = get(user, **without)
    assert json_of(pulled)["format"] == "mlx"
    assert pulled.stderr.count("is not installed: pip install 'phi4local[mlx]'") == 1
    assert pulled.stderr.index("is not installed") < pulled.stderr.index("Pulling")
    assert "not installed" not in get(user, **without).stderr


# -- bad days


def kill_when(user: Client, condition: Callable[[], bool]) -> None:
    command = [sys.executable, "-m", "phi4local", "pull", MLX_BUILD, "--from", "ready"]
    null = subprocess.DEVNULL
    child = subprocess.Popen(command, env=user.env, stdin=null, stdout=null, stderr=null)
    try:
        wait_for(condition, 30)
    finally:
        child.kill()
        child.wait()


def test_a_killed_pull_goes_on(hub: Hub, user: Client) -> None:
    partial = folder_of(user).with_name("nano-mlx-4bit.partial")
    sizes = [(hub.root / MLX / name).stat().st_size for name in SHARDS]
    hub.rate = 1e6
    kill_when(user, grown(partial / SHARDS[0], 300_000))
    assert json_of(user.run("list", "--json")) == []
    kill_when(user, grown(partial / SHARDS[1], 300_000))
    assert hub.settle()
    hub.rate = None
    found = json_of(get(user))
    check_whole(user, hub, found)
    assert found["resumed_bytes"] >= sizes[0] + 300_000
    assert hub.sent_bytes() <= 1.05 * sum(sizes) + 2 * (1 << 20)
    first = [one for one in hub.requests if one.origin == "cdn" and one.path.endswith(SHARDS[0])]
    assert len(first) == 2


def test_a_kill_between_the_folder_and_its_name(hub: Hub, user: Client) -> None:
    """The manifest stands, the folder has not got its name yet: it is not listed, and the next run ends the work."""
    json_of(get(user))
    folder = folder_of(user)
    folder.rename(folder.with_name(folder.name + ".partial"))
    assert json_of(user.run("list", "--json")) == []
    check_whole(user, hub, json_of(get(user)))


@pytest.mark.parametrize("damage", ["flip", "short", "small file", "no file", "no manifest", "code"])
def test_damage_is_found_and_only_the_bad_file_fetched_again(damage: str, hub: Hub, user: Client) -> None:
    first = json_of(get(user))
    folder, before = folder_of(user), hub.sent_bytes()
    shard = folder / SHARDS[1]
    data = shard.read_bytes()
    match damage:
        case "flip":
            shard.write_bytes(data[:70_000] + bytes([data[70_000] ^ 1]) + data[70_001:])
        case "short":
            shard.write_bytes(data[:-1])
        case "small file":
            (folder / "config.json").write_text("{}")
        case "no file":
            shard.unlink()
        case "no manifest":
            folder.with_name(folder.name + ".manifest.json").unlink()
        case _:
            (folder / "modeling_phi3.py").write_text("import os")
    second = json_of(get(user))
    check_whole(user, hub, second)
    assert second["sha256"] == first["sha256"]
    is_shard = damage in ("flip", "short", "no file")
    assert hub.sent_bytes() - before == (len(data) if is_shard else 0)


@pytest.mark.parametrize(("origin", "name"), [("cdn", SHARDS[1]), ("hub", "config.json")])
def test_wrong_bytes_are_refused(origin: str, name: str, hub: Hub, user: Client) -> None:
    hub.faults.append(Fault("flip", origin, f"/{name}", value=100, times=None))
    refused = get(user)
    assert refused.returncode in (4, 5)
    assert name in refused.stderr
    assert json_of(user.run("list", "--json")) == []
    hub.faults.clear()
    check_whole(user, hub, json_of(get(user)))


def test_a_link_that_breaks_is_no_trouble(hub: Hub, user: Client) -> None:
    hub.drop_every = 400_000
    check_whole(user, hub, json_of(get(user)))


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(hub: Hub, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        user = client(hub, disk / "home", catalog(repository=MLX))
        refused = get(user)
        assert refused.returncode == 6
        assert "needed" in refused.stderr
        assert (hub.sent_bytes(), json_of(user.run("list", "--json"))) == (0, [])
        assert not [path for path in folder_of(user).parent.iterdir() if not path.name.endswith(".lock")]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_one_small_file_is_repaired_on_a_disk_that_is_nearly_full(hub: Hub, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum((hub.root / MLX / name).stat().st_size for name in [*SMALL, *SHARDS])
    options = f"size={round(1.6 * size)}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        user = client(hub, disk / "home", catalog(repository=MLX))
        json_of(get(user))
        (folder_of(user) / "config.json").write_text("{}")
        check_whole(user, hub, json_of(get(user)))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_full_in_the_middle(hub: Hub, user: Client) -> None:
    """A limit on file sizes, below that of the first shard, is what a full disk is to a program."""
    pull = [sys.executable, "-m", "phi4local", "pull", MLX_BUILD, "--from", "ready"]
    limited = ["bash", "-c", 'ulimit -f 1000; exec "$@"', "bash", *pull]
    refused = subprocess.run(limited, env=user.env, capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 6, refused.stderr
    assert "needed" in refused.stderr
    assert json_of(user.run("list", "--json")) == []
    found = json_of(get(user))
    check_whole(user, hub, found)
    assert found["resumed_bytes"] > 1_000_000


def test_two_at_once_fetch_it_once(hub: Hub, user: Client) -> None:
    hub.rate = 2e6
    command = [sys.executable, "-m", "phi4local", "pull", MLX_BUILD, "--from", "ready"]
    null = subprocess.DEVNULL
    children = []
    for _ in range(2):
        children.append(subprocess.Popen(command, env=user.env, stdin=null, stdout=null, stderr=null))
        time.sleep(0.1)
    assert [child.wait(60) for child in children] == [0, 0]
    assert hub.sent_bytes() == sum((hub.root / MLX / name).stat().st_size for name in SHARDS)


# -- what is known of it then


def test_a_benchmark_of_it_is_remembered_apart_from_llama_cpps(user: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    json_of(get(user))
    folder = folder_of(user)
    files = {"mlx-4bit": folder}
    assert fit_files(files, 1024, "f16").build == "mlx-4bit"
    located = Located(MLX_BUILD, "nano", "mlx-4bit", folder)
    expected, predicted, where = bench._predictions(located, 1024, "f16")
    on_metal = where == "MLX on Metal"
    assert on_metal or (expected, predicted, where) == (Speed(), Speed(), "MLX on the processor")
    engine = machine_and_build()
    keep_benchmark(engine, Benchmark("nano", "mlx-4bit", where, predicted, Speed(41.0, 100.0)))
    keep_benchmark(engine, Benchmark("nano", "Q4_0", "cpu", Speed(100.0), Speed(200.0)))
    rows = {row["build"]: row for row in json_of(user.run("fit", "nano", "--json"))["builds"]}
    assert (rows["mlx-4bit"]["measured_tps"], rows["mlx-4bit"]["expected_tps"]) == (41, 41)
    assert rows["mlx-4bit"]["installed"]
    assert rows["mlx-4bit"]["file_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert rows["mlx-6bit"]["measured_tps"] is None
    assert bench._predictions(located, 1024, "f16")[0] == Speed(41.0, 100.0)
