"""A GGUF that is here already becomes a build without a copy of it, and nothing of its owner's is ever changed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from phi4local.actions.adopt import Adopted, adopt
from phi4local.errors import FormatError, NotFound, UsageError
from phi4local.files import take_lock
from phi4local.foreign import place
from phi4local.store import builds, find, read_manifest, remove
from quant.journal import lock_path
from tests import shapes
from tests.checkpoints import write_checkpoint
from tests.foreign import COMMIT, cached, ollama, own_home, sha256, write_nano
from tests.gguf_models import Geometry, write_random, write_scripted
from tests.running import finish, json_of, make, phi4local

SHARED = Path("/dev/shm")


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path / "user", monkeypatch)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model that nobody changes."""
    return write_nano(tmp_path_factory.mktemp("nano"))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder of another file system."""
    if not os.access(SHARED, os.W_OK) or SHARED.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    folder = Path(tempfile.mkdtemp(dir=SHARED))
    yield folder
    shutil.rmtree(folder)


def take(path: Path, name: str | None = None) -> Adopted:
    return finish(adopt(path, name))


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and content: what a stranger's folder must keep."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_an_mlx_folder_needs_no_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mlx"
    folder.mkdir()
    (folder / "config.json").write_text('{"quantization": {"bits": 4}}')
    monkeypatch.chdir(tmp_path)
    for path, told in ((folder, str(folder)), (Path("mlx"), "./mlx")):
        with pytest.raises(UsageError, match="import takes GGUF files") as error:
            take(path)
        assert f"`phi4local chat {told}`" in error.value.hint


def test_the_whole_way(user: Path, nano: Path) -> None:
    blob = ollama(user / ".ollama/models", nano)
    before = tree(user)
    [listed] = json_of(phi4local("import", "--json"))
    assert (listed["path"], listed["imported"], listed["is_phi"]) == (str(blob), None, True)
    made = json_of(phi4local("import", listed["path"], "--json"))
    assert (made["name"], made["build"], made["format"]) == ("phi4-nano", "Q4_0", "gguf")
    assert (made["sha256"], made["bytes"]) == (sha256(nano), nano.stat().st_size)
    assert made["link"] == "hard"
    source = made["source"]
    assert (source["from"], source["path"], source["repo"]) == ("import", str(blob), None)
    assert source["files"] == [{"name": blob.name, "bytes": made["bytes"], "sha256": made["sha256"]}]
    assert blob.samefile(made["path"])
    assert [entry["path"] for entry in json_of(phi4local("list", "--json"))] == [made["path"]]
    assert json_of(phi4local("verify", "--json")) == {"checked": 1, "damaged": []}
    answer = json_of(phi4local("chat", "phi4-nano:Q4_0", "-p", "What is 17 + 25?", "--json"))
    assert "42" in answer["text"]
    again = phi4local("import", blob, "--json")
    assert json_of(again)["was_here"]
    assert [one["imported"] for one in json_of(phi4local("import", "--json"))] == ["phi4-nano:Q4_0"]
    assert json_of(phi4local("remove", "phi4-nano", "--json"))["freed_bytes"] == 0
    assert tree(user) == before
    assert not Path(made["path"]).parent.exists()


def test_another_file_system_gets_a_symbolic_link(elsewhere: Path, nano: Path) -> None:
    path = elsewhere / "phi4-nano-Q4_0.gguf"
    shutil.copyfile(nano, path)
    adopted = take(path)
    assert (adopted.link, adopted.build.path.is_symlink()) == ("symbolic", True)
    assert adopted.build.path.resolve() == path
    assert json_of(phi4local("verify", "phi4-nano", "--json"))["damaged"] == []
    assert take(path).link is None
    remove(find("phi4-nano"))
    assert sha256(path) == sha256(nano)
    assert builds() == []


def test_a_file_that_its_owner_deletes(elsewhere: Path, nano: Path, home: Path) -> None:
    path = elsewhere / "model.gguf"
    shutil.copyfile(nano, path)
    take(path)
    path.unlink()
    assert json_of(phi4local("list", "--json")) == []
    verdict = phi4local("verify", "phi4-nano", "--json")
    assert verdict.returncode == 5
    [damage] = json.loads(verdict.stdout)["damaged"]
    assert (damage["got"], damage["problem"]) == (None, "the file is missing")
    refused = phi4local("chat", "phi4-nano", "-p", "x")
    assert (refused.returncode, "is gone" in refused.stderr) == (3, True)
    assert "`phi4local remove phi4-nano:Q4_0`" in refused.stderr
    shutil.copyfile(nano, path)  # it comes back, and another file may take its place, too
    assert take(path).link is None
    path.unlink()
    write_scripted(path, ["yes"])
    assert take(path, "phi4-nano:Q4_0").link == "symbolic"
    path.unlink()
    assert json_of(phi4local("remove", "phi4-nano", "--json"))["freed_bytes"] == 0
    assert list((home / "models").iterdir()) == []


def test_a_damaged_blob_is_refused(user: Path, nano: Path, home: Path) -> None:
    for path in (ollama(user / ".ollama/models", nano), cached(user / ".cache/huggingface/hub", nano)):
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)
        with pytest.raises(FormatError, match="is damaged"):
            take(path)
        assert list((home / "models").iterdir()) == []


def test_the_hubs_cache_tells_repository_and_commit(user: Path, nano: Path) -> None:
    path = cached(user / ".cache/huggingface/hub", nano)
    blob = path.resolve()
    source = take(path).build.manifest.source
    assert (source["repo"], source["revision"], source["path"]) == ("owner/phi-4-GGUF", COMMIT, str(path))
    assert take(blob).link is None
    known = place(blob)
    assert (known.title, known.repository, known.revision) == ("phi-4-GGUF", "owner/phi-4-GGUF", None)


def test_a_published_file_is_known_by_its_bytes(nano: Path, home: Path) -> None:
    home.mkdir()
    (home / "catalog.toml").write_text(
        f'[models.my-nano]\nrepository = "me/nano"\n'
        f'[[ready]]\nmodel = "my-nano"\nrepository = "me/nano-GGUF"\nrevision = "{COMMIT}"\nflaws = []\n'
        f'files.Q4_0 = {{ file = "nano.gguf", sha256 = "{sha256(nano)}" }}\n'
    )
    source = take(nano).build.manifest.source
    assert (source["repo"], source["revision"]) == ("me/nano-GGUF", COMMIT)


def test_flaws_are_told_and_left(tmp_path: Path) -> None:
    path = tmp_path / "phi-4-Q4_K_M.gguf"
    write_random(path, Geometry(), template="")
    before = sha256(path)
    result = phi4local("import", path, "--name", "phi-4", "--json")
    flaws = json_of(result)["source"]["flaws"]
    assert [flaw["key"] for flaw in flaws] == ["tokenizer.chat_template"]
    assert "chat_template: none was published" in result.stderr
    assert "`phi4local pull phi-4:Q4_K_M --from official`" in result.stderr
    assert "none needed" not in phi4local("show", "phi-4").stdout
    assert sha256(path) == before


# --- names -----------------------------------------------------------------------------------------------------------

TINY_SHAPE = """
[shapes.tiny]
hidden = 256
intermediate = 1024
layers = 4
heads = 8
kv_heads = 2
vocabulary = 864
context = 16384
original_context = 16384
rotary_dimensions = 32
rope_theta = {theta}
rms_epsilon = 1e-5
sliding_window = 0
tied = false
header_bytes = 20000
[models.tiny-of-the-catalogue]
repository = "me/phi-4-tiny"
spellings = ["phi-4-tiny"]
shape = "tiny"
"""


@pytest.mark.parametrize(
    ("folder", "file", "theta", "label"),
    [
        ("phi-4-tiny", "model.gguf", 250_000, "tiny-of-the-catalogue:Q4_0"),
        ("phi-4-tiny", "model.gguf", 10_000, "phi-4-tiny:Q4_0"),
        ("something", "microsoft_phi-4-tiny-Q4_0.gguf", 250_000, "tiny-of-the-catalogue:Q4_0"),
        ("phi-4-tiny", "phi-4-tiny-abliterated.Q8_0.gguf", 250_000, "phi-4-tiny-abliterated:Q4_0"),
        ("phi-4-tiny-tuned", "phi-4-tiny-Q4_0.gguf", 250_000, "phi-4-tiny-tuned:Q4_0"),
    ],
)
def test_a_catalogue_name_only_for_its_shape_and_spelling(
    folder: str, file: str, theta: int, label: str, tmp_path: Path, home: Path
) -> None:
    home.mkdir()
    (home / "catalog.toml").write_text(TINY_SHAPE.format(theta=theta))
    path = tmp_path / file
    make(write_checkpoint(tmp_path / folder, shapes.PHI4_TINY), "Q4_0", path)
    assert take(path).build.label == label


@pytest.mark.parametrize(
    ("file", "name", "label"),
    [
        ("Some Model.Q5_K_S.gguf", None, "some-model:Q5_K_S"),
        ("model-UD-Q4_K_XL.gguf", None, "model:UD-Q4_K_XL"),
        ("model-iq3_xxs.GGUF", None, "model:IQ3_XXS"),
        ("v1.5", None, "v1.5:GGUF"),
        ("model.gguf", "mine", "mine:GGUF"),
        ("model-Q8_0.gguf", "mine:Best_1", "mine:Best_1"),
    ],
)
def test_names_from_the_file_and_from_the_user(file: str, name: str | None, label: str, tmp_path: Path) -> None:
    path = tmp_path / "source" / file
    path.parent.mkdir()
    write_scripted(path, ["yes"])
    assert take(path, name).build.label == label
    assert take(path, name).link is None
    assert take(take(path, name).build.path, None).build.manifest.sha256 == sha256(path)


def test_an_ollama_model_without_a_name_of_its_own(user: Path, tmp_path: Path) -> None:
    write_scripted(tmp_path / "a.gguf", ["yes"])
    assert take(ollama(user / ".ollama/models", tmp_path / "a.gguf")).build.manifest.name == "phi4"


@pytest.mark.parametrize("name", ["", ":Q4_0", "x:", "../x", "x:../y", "X", "x/y:z", "a" * 200, "x:y:z", "x\n"])
def test_bad_names_are_refused(name: str, nano: Path, home: Path) -> None:
    with pytest.raises(UsageError) as caught:
        take(nano, name)
    assert caught.value.hint
    assert not list(home.rglob("*"))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_another_file_under_that_name(nano: Path, tmp_path: Path) -> None:
    take(nano, "mine:one")
    for words in (["yes"], ["no", "yes"]):
        other = tmp_path / f"{words[0]}.gguf"
        write_scripted(other, words)
        with pytest.raises(UsageError, match="another file") as caught:
            take(other, "mine:one")
        assert "phi4local remove mine:one" in caught.value.hint
    same_size = tmp_path / "same.gguf"
    data = bytearray(nano.read_bytes())
    data[-1] ^= 1
    same_size.write_bytes(data)
    with pytest.raises(UsageError, match="another file"):
        take(same_size, "mine:one")
    assert [build.manifest.sha256 for build in builds()] == [sha256(nano)]


def test_what_is_no_model(nano: Path, tmp_path: Path, home: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    (tmp_path / "cut.gguf").write_bytes(nano.read_bytes()[:-1])
    (tmp_path / "self.gguf").symlink_to(tmp_path / "self.gguf")
    errors: dict[str, type[Exception]] = {"nothing.gguf": NotFound, ".": UsageError}
    errors |= dict.fromkeys(("pipe.gguf", "text.gguf", "cut.gguf", "self.gguf"), FormatError)
    for name, error in errors.items():
        with pytest.raises(error) as caught:
            take(tmp_path / name)
        assert getattr(caught.value, "hint", "") or name == "self.gguf"
    assert not home.exists()


def test_a_leftover_of_that_name_is_not_taken_for_a_build(nano: Path, home: Path) -> None:
    target = home / "models/phi4-nano/phi4-nano-Q4_0.gguf"
    target.parent.mkdir(parents=True)
    shutil.copyfile(nano, target)
    with pytest.raises(UsageError, match="no finished build"):
        take(nano)
    with pytest.raises(UsageError, match="lies in the store"):
        take(target)
    assert sha256(target) == sha256(nano)


def test_one_import_of_a_name_at_a_time(nano: Path, home: Path) -> None:
    lock = take_lock(lock_path(home / "models/phi4-nano/phi4-nano-Q4_0.gguf"))
    assert lock
    with lock, pytest.raises(UsageError, match="Another process"):
        take(nano)
    assert take(nano).link == "hard"


def test_a_file_that_changes_while_it_is_read(nano: Path, tmp_path: Path, home: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copyfile(nano, path)
    work = adopt(path, None)
    next(work)
    path.write_bytes(nano.read_bytes()[::-1])
    with pytest.raises(FormatError, match="changed"):
        finish(work)
    assert list((home / "models").iterdir()) == []


@pytest.mark.slow
def test_killed_at_any_moment(nano: Path, home: Path) -> None:
    command = [sys.executable, "-m", "phi4local", "import", str(nano)]
    start = time.monotonic()
    subprocess.run(command, capture_output=True, check=True)
    seconds = time.monotonic() - start
    killed = 0
    for part in range(12):
        shutil.rmtree(home)
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds * (0.6 + 0.4 * part / 12))
        child.kill()
        killed += child.wait() == -signal.SIGKILL
        assert all(sha256(build.path) == build.manifest.sha256 for build in builds())
        finish(adopt(nano, None))
        assert [read_manifest(build.path).sha256 for build in builds()] == [sha256(nano)]
        phi4local("prune")
        assert len(list((home / "models/phi4-nano").iterdir())) == 2
    assert killed
