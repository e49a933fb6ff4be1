"""`phi4local pull` on a good day: both ways to a build, what is told about it, and which way is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quant.ggml import BUILDS
from quant.gguf import read_header
from quant.repair import PHI4_TEMPLATE
from tests.hub import Hub
from tests.pulling import (
    BUILD,
    EOS,
    FILE,
    OFFICIAL,
    OLD_END,
    PAD,
    READY,
    TEMPLATE,
    Client,
    catalog,
    client,
    grown,
    publish_nano,
    sha256,
    tree,
    wait_for,
    walk,
    write_flawed,
)
from tests.running import json_of
from tests.shapes import PHI4_RELEASE_TEMPLATE

FLAWED = "acme/nano-flawed"
CONTRACT = {
    *("name", "build", "path", "bytes", "sha256", "bpw", "types", "repairs", "source"),
    *("downloaded_bytes", "resumed_bytes", "seconds"),
}
WEIGHTS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = publish_nano(tmp_path_factory.mktemp("hub"))
    (folder / FLAWED).mkdir()
    write_flawed(folder / READY / FILE, folder / FLAWED / FILE)
    return folder


# -- the contract


def test_ready_made(root: Path, hub: Hub, user: Client) -> None:
    published = root / READY / FILE
    found = json_of(user.pull())
    assert found.keys() >= CONTRACT
    assert (found["name"], found["build"], found["path"]) == ("nano", "Q4_K_M", str(user.target))
    assert found["sha256"] == sha256(published) == sha256(user.target)
    assert found["bytes"] == found["downloaded_bytes"] == published.stat().st_size == hub.sent_bytes()
    assert (found["resumed_bytes"], found["repairs"]) == (0, [])
    assert sum(found["types"].values()) == len(read_header(published).tensors)
    files = [{"name": FILE, "bytes": found["bytes"], "sha256": found["sha256"]}]
    assert found["source"] == {"repo": READY, "revision": hub.sha(READY), "from": "ready", "files": files}
    assert {path.name for path in user.target.parent.iterdir()} == {FILE, FILE + ".manifest.json"}
    assert user.listed() == [BUILD]


@pytest.mark.parametrize("build", ["Q4_K_M", "BF16"])
def test_official_is_what_quantize_makes(build: str, root: Path, hub: Hub, user: Client, tmp_path: Path) -> None:
    made = json_of(user.run("quantize", root / OFFICIAL, "--to", build, "--out", tmp_path / "own.gguf", "--json"))
    found = json_of(user.run("pull", f"nano:{build}", "--from", "official", "--json"))
    same = ("build", "bytes", "sha256", "bpw", "types", "repairs")
    assert {key: found[key] for key in same} == {key: made[key] for key in same}
    assert found.keys() >= CONTRACT
    assert sha256(Path(found["path"])) == made["sha256"] == sha256(tmp_path / "own.gguf")
    source = found["source"]
    assert (source["repo"], source["revision"], source["from"]) == (OFFICIAL, hub.sha(OFFICIAL), "official")
    assert source["files"] == made["source"]["files"]
    assert {file["sha256"] for file in source["files"]} == {
        sha256(root / OFFICIAL / f["name"]) for f in source["files"]
    }
    assert found["downloaded_bytes"] == sum(file["bytes"] for file in source["files"])
    assert {path.suffix for path in walk(user.home / "models")} == {".gguf", ".json"}


@pytest.mark.parametrize("source", ["ready", "official"])
def test_again_is_no_work(source: str, hub: Hub, user: Client) -> None:
    first = json_of(user.pull(source=source))
    asked = len(hub.requests)
    second = json_of(user.pull(source=source))
    assert len(hub.requests) == asked
    assert (second["sha256"], second["downloaded_bytes"]) == (first["sha256"], 0)
    assert "here already" in user.run("pull", BUILD).stderr


def test_the_other_source_when_it_is_asked_for(user: Client) -> None:
    assert json_of(user.pull())["source"]["from"] == "ready"
    assert json_of(user.pull(source="official"))["source"]["from"] == "official"
    assert json_of(user.run("pull", BUILD, "--json"))["source"]["from"] == "official"


@pytest.mark.parametrize(
    ("source", "damage"),
    [
        *(("ready", damage) for damage in ("flip", "short", "no manifest", "broken manifest", "no file")),
        ("official", "flip"),
    ],
)
def test_damage_is_found_and_mended(damage: str, source: str, user: Client) -> None:
    first = json_of(user.pull(source=source))
    path, manifest = user.target, user.target.with_name(FILE + ".manifest.json")
    data = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(data[:70_000] + bytes([data[70_000] ^ 1]) + data[70_001:])
        case "short":
            path.write_bytes(data[:-1])
        case "no manifest":
            manifest.unlink()
        case "broken manifest":
            manifest.write_text("{")
        case _:
            path.unlink()
    second = json_of(user.pull(source=source))
    assert second["sha256"] == first["sha256"] == sha256(path)
    assert json_of(user.run("verify", "--json"))["damaged"] == []
    assert user.listed() == [BUILD]


@pytest.mark.parametrize("source", ["ready", "official"])
def test_four_at_once(source: str, root: Path, hub: Hub, user: Client) -> None:
    hub.rate = 10e6
    children = [user.start(source) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    suffix = FILE if source == "ready" else ".safetensors"
    size = sum(path.stat().st_size for path in walk(root / (READY if source == "ready" else OFFICIAL)))
    assert 0 < hub.sent_bytes(suffix) <= 1.05 * size
    assert user.listed() == [BUILD]
    assert json_of(user.run("verify", "--json"))["damaged"] == []


# -- what it would do, and what it keeps


def test_dry_run_of_a_ready_made(root: Path, hub: Hub, user: Client) -> None:
    found = json_of(user.pull("--dry-run"))
    size = (root / READY / FILE).stat().st_size
    files = [{"name": FILE, "bytes": size, "sha256": sha256(root / READY / FILE)}]
    assert found["source"] == {"repo": READY, "revision": hub.sha(READY), "files": files}
    assert (found["dry_run"], found["bytes"], hub.sent_bytes(), user.listed()) == (True, size, 0, [])
    assert FILE in user.run("pull", BUILD, "--from", "ready", "--dry-run").stdout


def test_dry_run_of_the_official_weights(root: Path, hub: Hub, user: Client) -> None:
    found = json_of(user.pull("--dry-run", source="official"))
    assert [file["sha256"] for file in found["source"]["files"]] == [sha256(root / OFFICIAL / name) for name in WEIGHTS]
    assert hub.sent_bytes(".safetensors") <= 2 * 65_536
    assert user.listed() == []
    made = json_of(user.pull(source="official"))
    same = ("name", "build", "path", "bytes", "bpw", "types", "repairs")
    assert {key: found[key] for key in same} == {key: made[key] for key in same}


def test_the_source_is_kept_when_that_is_wanted(root: Path, hub: Hub, user: Client) -> None:
    json_of(user.pull("--keep-source", source="official"))
    [folder] = (user.home / "sources").glob("*/*")
    assert folder.name == "phi4-nano"
    assert all(sha256(folder / name) == sha256(root / OFFICIAL / name) for name in [*WEIGHTS, "tokenizer.json"])
    sent = hub.sent_bytes(".safetensors")
    json_of(user.run("pull", "nano:Q8_0", "--from", "official", "--keep-source", "--json"))
    assert hub.sent_bytes(".safetensors") == sent


# -- which build, and from where


def test_without_a_build_the_recommended_one(user: Client) -> None:
    recommended = json_of(user.run("fit", "nano", "--json"))
    result = user.run("pull", "nano", "--json")
    assert json_of(result)["build"] == recommended["recommended"]
    assert recommended["why"] in result.stderr


def _known(root: Path, hub: Hub, repository: str = READY, **more: Any) -> dict[str, Any]:
    published = root / repository / FILE
    facts = {"revision": hub.sha(repository), "size": published.stat().st_size, "sha256": sha256(published)}
    return {"repository": repository} | facts | more


@pytest.mark.parametrize(
    ("facts", "came_from"),
    [
        ({}, "ready"),
        ({"revision": ""}, "official"),
        ({"size": 0}, "official"),
        ({"flaws": '["template"]'}, "official"),
        ({"flaws": '["unknown"]'}, "official"),
    ],
    ids=lambda value: str(value),
)
def test_the_default_is_what_is_known_to_be_good(
    facts: dict[str, Any], came_from: str, root: Path, hub: Hub, home: Path
) -> None:
    result = client(hub, home, catalog(**_known(root, hub, **facts))).run("pull", BUILD, "--dry-run", "--json")
    assert json_of(result)["source"]["repo"] == (READY if came_from == "ready" else OFFICIAL)
    assert ("made here" in result.stderr) == (came_from == "official")


def test_a_pinned_commit_is_taken_though_main_has_moved(root: Path, hub: Hub, home: Path, tmp_path: Path) -> None:
    user = client(hub, home, catalog(**_known(root, hub)))
    pinned = hub.sha(READY)
    (tmp_path / FILE).write_bytes(b"another file")
    assert hub.publish(READY, tmp_path) != pinned
    assert json_of(user.pull())["source"]["revision"] == pinned


@pytest.mark.parametrize(
    ("wrong", "word"), [({"size": 2_339_265}, "2339265"), ({"sha256": "0" * 64}, "0" * 64)], ids=["bytes", "sha256"]
)
def test_a_listing_unlike_the_catalogue_is_refused(
    wrong: dict[str, Any], word: str, root: Path, hub: Hub, home: Path
) -> None:
    user = client(hub, home, catalog(**_known(root, hub, **wrong)))
    result = user.pull()
    assert result.returncode == 5
    assert FILE in result.stderr
    assert word in result.stderr
    assert "hint:" in result.stderr
    assert (hub.sent_bytes(), user.listed()) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nanoo:Q4_K_M"], 3, ["nanoo", "Did you mean nano?"]),
        (["something/else"], 3, ["something/else", "hint:"]),
        (["nano:Q4_K_X"], 2, ["Q4_K_X", "Q4_K_M"]),
        (["nano:Q5_K_M", "--from", "ready"], 3, ["Q5_K_M", "--from official"]),
        (["nano:mlx-7bit"], 2, ["mlx-7bit", "mlx-4bit"]),
        (["nano:mlx-6bit", "--from", "ready"], 3, ["an mlx-6bit", "--from official"]),
        (["nano:../../x"], 2, ["hint:"]),
        (["nano", "--from", "elsewhere"], 2, ["elsewhere"]),
        ([], 2, ["NAME"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_what_cannot_be_pulled(arguments: list[str], code: int, words: list[str], user: Client) -> None:
    result = user.run("pull", *arguments)
    assert result.returncode == code, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["acme/absent", "acme/phi4-nano"])
def test_what_the_hub_has_not(name: str, hub: Hub, home: Path) -> None:
    user = client(hub, home, catalog(repository=name, file="absent.gguf"))
    result = user.pull()
    assert result.returncode == 3
    assert name in result.stderr
    assert "hint:" in result.stderr


def test_a_gated_repository_needs_its_token(hub: Hub, user: Client) -> None:
    hub.gated.add(READY)
    result = user.pull()
    assert result.returncode == 4
    assert "HF_TOKEN" in result.stderr
    assert json_of(user.pull(HF_TOKEN=hub.token))["downloaded_bytes"] > 0
    assert hub.tokens_seen("cdn") == []
    assert hub.token not in "".join(path.read_text(errors="ignore") for path in walk(user.home))


PLAIN = catalog()
MUTANTS = {
    "not TOML": (lambda text: text + "[models", "TOML"),
    "not UTF-8 text": (lambda text: text + "\x00", "TOML"),
    "an unknown table": (lambda text: text + "[modells.x]\n", "modells"),
    "an unknown key": (lambda text: text.replace("flaws =", "flaw = 1\nflaws ="), "flaw"),
    "no flaws": (lambda text: text.replace("flaws = []\n", ""), "flaws"),
    "an unknown flaw": (lambda text: text.replace("flaws = []", 'flaws = ["ugly"]'), "ugly"),
    "no repository": (lambda text: text.replace(f'repository = "{READY}"\n', ""), "repository"),
    "a repository with a path": (lambda text: text.replace(READY, "acme/nano/gguf"), "repository"),
    "a branch as commit": (lambda text: text.replace("flaws =", 'revision = "main"\nflaws ='), "revision"),
    "a hash that is short": (lambda text: text.replace(f'"{FILE}"', f'"{FILE}", sha256 = "00"'), "sha256"),
    "a size of nothing": (lambda text: text.replace(f'"{FILE}"', f'"{FILE}", bytes = 0'), "bytes"),
    "a size in words": (lambda text: text.replace(f'"{FILE}"', f'"{FILE}", bytes = "2 MB"'), "bytes"),
    "no file": (lambda text: text.replace("file = ", "files = ", 1), "files"),
    "an unknown model": (lambda text: text.replace('model = "nano"', 'model = "mano"'), "mano"),
    "an unknown shape": (lambda text: text.replace('shape = "nano"', 'shape = "mano"'), "shape"),
    "a shape without layers": (lambda text: text.replace("layers = ", "layer = "), "layer"),
    "a negative count": (lambda text: text.replace("hidden = ", "hidden = -"), "hidden"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_catalogue_is_refused_by_its_key(name: str, hub: Hub, home: Path) -> None:
    mutate, key = MUTANTS[name]
    assert mutate(PLAIN) != PLAIN
    result = client(hub, home, mutate(PLAIN)).pull("--dry-run")
    assert result.returncode == 5, result.stderr
    assert "catalog.toml" in result.stderr
    assert key in result.stderr
    assert "hint:" in result.stderr
    assert "Traceback" not in result.stderr


# -- a flawed file is mended as it arrives


def test_a_flawed_file_is_mended(root: Path, hub: Hub, home: Path) -> None:
    published = root / FLAWED / FILE
    user = client(hub, home, catalog(repository=FLAWED, flaws='["end-of-turn", "template", "padding"]'))
    found = json_of(user.pull())
    before, after = read_header(published), read_header(user.target)
    ends = {"from": OLD_END, "to": 937}
    changes = {repair["key"]: {"from": repair["from"], "to": repair["to"]} for repair in found["repairs"]}
    assert changes == {
        EOS: ends,
        PAD: {"from": OLD_END, "to": 1021},
        TEMPLATE: {"from": PHI4_RELEASE_TEMPLATE, "to": PHI4_TEMPLATE},
    }
    filler = {"phi4local.filler": after.metadata["phi4local.filler"]} if "phi4local.filler" in after.metadata else {}
    assert after.metadata == before.metadata | {key: change["to"] for key, change in changes.items()} | filler
    assert published.read_bytes()[before.data_offset :] == user.target.read_bytes()[after.data_offset :]
    assert found["sha256"] == sha256(user.target) != found["source"]["files"][0]["sha256"] == sha256(published)
    assert json_of(user.run("verify", "--json")) == {"checked": 1, "damaged": []}
    assert user.run("chat", BUILD, "-p", "What is 17 + 25?").stdout.strip().endswith("42.")
    assert json_of(user.pull())["downloaded_bytes"] == 0
    assert {path.name for path in user.target.parent.iterdir()} == {FILE, FILE + ".manifest.json"}


def test_the_command_tells_people_what_it_did(user: Client) -> None:
    result = user.run("pull", BUILD, "--from", "ready")
    assert result.returncode == 0
    assert sha256(user.target) in result.stdout
    assert "phi4local chat nano:Q4_K_M" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr


def test_ctrl_c_says_that_it_goes_on(hub: Hub, user: Client, tmp_path: Path) -> None:
    hub.rate = 500e3
    command = [sys.executable, "-m", "phi4local", "pull", BUILD, "--from", "ready"]
    child = subprocess.Popen(command, env=user.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(grown(user.partial, 100_000))
    child.send_signal(2)
    _, err = child.communicate(timeout=10)
    assert child.returncode == 130
    assert "goes on from here" in err
    hub.rate = None
    assert json_of(user.pull())["resumed_bytes"] >= 100_000


def test_every_build_has_a_way(user: Client) -> None:
    """The catalogue's builds without a published file are made here."""
    assert {"Q4_K_M", "Q8_0", "BF16"} <= BUILDS.keys()
    value = json.loads(user.run("pull", "nano:q8_0", "--json").stdout)
    assert (value["build"], value["source"]["from"]) == ("Q8_0", "official")
    assert tree(user.home / "models").keys() >= {"nano/nano-Q8_0.gguf"}
