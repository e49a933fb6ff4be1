"""Hubs and repositories that mean harm: answers without end, names that leave the store, headers that lure, code."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.hub import Fault, Hub
from tests.hub_faults import PORTAL
from tests.pulling import (
    BUILD,
    FILE,
    MIB,
    OFFICIAL,
    READY,
    Client,
    catalog,
    client,
    controls,
    sha256,
    tree,
    witness,
    write_flawed,
)
from tests.running import json_of

SHARD, INDEX = "model-00002-of-00002.safetensors", "model.safetensors.index.json"
TOKEN = "hf_secret_of_the_user"


def publish_changed(hub: Hub, root: Path, folder: Path, repository: str, change: Callable[[Path], None]) -> None:
    """Move a repository's `main` to a changed copy."""
    copy = shutil.copytree(root / repository, folder, copy_function=os.link)
    change(copy)
    hub.publish(repository, copy)


def replaced(name: str, data: bytes) -> Callable[[Path], None]:
    """A change of a repository: another file under a name."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)

    return change


def check_refused(result: CompletedProcess[str], user: Client) -> None:
    """An error of ours in words that no terminal obeys, and nothing to list."""
    assert result.returncode in (3, 4, 5), result.stderr
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr
    assert not controls(result.stdout, result.stderr)
    assert not any(user.home.rglob("*.manifest.json"))


# -- too much

ENDLESS = {
    "a million files": Fault("huge_tree", "hub", value=1_000_000, times=None),
    "more files than any": Fault("huge_tree", "hub", value=30_000, times=None),
    "pages without end": Fault("endless_pages", "hub", times=None),
    "a list without end": Fault("never_ending", "hub", "/tree/", times=None),
    "a model without end": Fault("never_ending", "hub", "/revision/", times=None),
    "a packed gigabyte": Fault("gzip_bomb", "hub", "/tree/", value=1_000_000_000, times=None),
    "a packed model": Fault("gzip_bomb", "hub", "/revision/", value=1_000_000_000, times=None),
    "depth": Fault("body", "hub", "/tree/", value=b"[" * 3_000_000, times=None),
    "a long number": Fault("body", "hub", "/tree/", value=b"1" * 3_000_000, times=None),
    "not UTF-8": Fault("body", "hub", "/tree/", value=b'[{"path": "\xff"}]', times=None),
    "null": Fault("body", "hub", "/revision/", value=b"null", times=None),
    "a list of nulls": Fault("body", "hub", "/tree/", value=b"[null, 1, [], {}]", times=None),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_answers_that_are_too_much(name: str, hub: Hub, user: Client, tmp_path: Path) -> None:
    hub.faults.append(ENDLESS[name])
    check_bounded(user, "ready", tmp_path)


def check_bounded(user: Client, source: str, tmp_path: Path) -> CompletedProcess[str]:
    """Refused in less than five seconds and 300 MiB."""
    seen, start = witness(tmp_path / "witness"), time.monotonic()
    result = user.pull(source=source, **seen.env)
    assert time.monotonic() - start < 5
    check_refused(result, user)
    assert seen.peak_bytes < 300 * MIB
    return result


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


_GGUF = b"GGUF\x03\0\0\0"
FILES = {
    "text of 2**63": _GGUF + _number(1) + _number(1) + _number(1 << 63),
    "2**40 keys": _GGUF + _number(1) + _number(1 << 40),
    "2**60 tensors": _GGUF + _number(1 << 60) + _number(1),
    "a list of 2**61": _GGUF + _number(1) + _number(1) + _number(1) + b"a\x09\0\0\0\x04\0\0\0" + _number(1 << 61),
    "nothing": b"",
    "zip": b"",
    "web page": PORTAL * 9000,
    "pickle": b"\x80\x04\x95" + b"cos\nsystem\n" * 90_000,
}


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("data.pkl", os.urandom(1_100_000))
    return out.getvalue()


@pytest.mark.parametrize("name", FILES)
def test_files_that_claim_too_much(name: str, root: Path, hub: Hub, user: Client, tmp_path: Path) -> None:
    data = _zip() if name == "zip" else FILES[name]
    publish_changed(hub, root, tmp_path / "copy", READY, replaced(FILE, data.ljust(1_200_000 if data else 0, b"\0")))
    result = check_bounded(user, "ready", tmp_path)
    assert result.returncode == 5
    assert FILE in result.stderr
    assert not user.partial.exists()


SMALL = {
    "config of 39 MB": ("config.json", b"[" * 39_000_000),
    "config of 41 MB": ("config.json", b" " * 41_000_000),
    "tokenizer of 39 MB": ("tokenizer.json", b"[" * 39_000_000),
    "tokenizer of many items": ("tokenizer.json", b"[" + b"0," * 12_000_000 + b"0]"),
    "index of 39 MB": (INDEX, b'{"weight_map": {' + b" " * 39_000_000),
    "shard header of 2**63": (SHARD, _number(1 << 63).ljust(1_200_000, b"\0")),
    "shard header of 99 MB": (SHARD, _number(99_000_000).ljust(1_200_000, b"{")),
    "shard header as long as allowed": (SHARD, _number(1_999_992) + b"[" * 3_000_000),
    "zip as shard": (SHARD, _zip()),
}


@pytest.mark.parametrize("name", SMALL)
def test_official_files_that_claim_too_much(name: str, root: Path, hub: Hub, user: Client, tmp_path: Path) -> None:
    publish_changed(hub, root, tmp_path / "copy", OFFICIAL, replaced(*SMALL[name]))
    result = check_bounded(user, "official", tmp_path)
    assert result.returncode == 5
    assert SMALL[name][0] in result.stderr


# -- names

NAMES = [
    *("../outside", "../../../outside", "a/../../outside", "/tmp/outside-absolute", "..", "."),
    *("C:\\outside", "\\\\server\\outside", "a\0b", "n" * 300, "\x1b[31mred\x1b[0m", "two\nlines", "\u202egnp.fugg"),
    *("CON", "dot.", ".git/hooks/pre-commit", "-rf", "\x9b31m", " ", "", "~/outside", "%2e%2e/outside", "a//b"),
]


def check_inside(before: dict[str, int], folder: Path) -> None:
    """Whatever appeared lies in the home's own folders."""
    new = tree(folder).keys() - before.keys()
    assert [name for name in new if not re.match(r"home/(models|state)/[\w./\-]+$", name)] == []


def _entry(name: str) -> dict[str, Any]:
    return {
        "type": "file",
        "path": name,
        "size": 4,
        "oid": "0" * 40,
        "lfs": {"oid": "0" * 64, "size": 4, "pointerSize": 1},
    }


@pytest.mark.parametrize("source", ["ready", "official"])
def test_names_in_a_list_of_files(source: str, root: Path, hub: Hub, user: Client, tmp_path: Path) -> None:
    repository = READY if source == "ready" else OFFICIAL
    with Hub(root) as honest:
        entries = honest._revisions[repository]["main"].entries
    value = json.dumps([*map(_entry, NAMES), *entries]).encode()
    hub.faults.append(Fault("body", "hub", "/tree/", value=value, times=None))
    before = tree(tmp_path)
    result = user.pull(source=source)
    assert json_of(result)["sha256"] == sha256(root / READY / FILE)
    assert not controls(result.stdout, result.stderr)
    check_inside(before, tmp_path)


SOME = ["../../outside", "/tmp/outside-absolute", "C:\\outside", "a\0b", "n" * 300, "\x1b[31mred"]


@pytest.mark.parametrize("name", SOME)
def test_names_of_shards(name: str, root: Path, hub: Hub, user: Client, tmp_path: Path) -> None:
    weight_map = {"model.norm.weight": name, "\x1b[31m" + name[:40]: name + ".safetensors"}
    index = json.dumps({"weight_map": weight_map}).encode()
    publish_changed(hub, root, tmp_path / "copy", OFFICIAL, replaced(INDEX, index))
    before = tree(tmp_path)
    check_refused(user.pull(source="official"), user)
    check_inside(before, tmp_path)


@pytest.mark.parametrize("name", [*SOME, "\u202egnp.fugg", "two\nlines"])
def test_names_in_the_catalogue(name: str, hub: Hub, home: Path, tmp_path: Path) -> None:
    user = client(hub, home, catalog(file="FILE").replace('"FILE"', json.dumps(name)))
    before = tree(tmp_path)
    result = user.pull(timeout=5)
    check_refused(result, user)
    assert hub.sent_bytes() == 0
    check_inside(before, tmp_path)


# -- headers and addresses


def _commit_of(sha: object) -> bytes:
    return json.dumps({"id": READY, "modelId": READY, "sha": sha, "siblings": [], "tags": []}).encode()


HEADERS = {
    "etag": Fault("headers", "hub", "/resolve/", value={"ETag": '"../../x"', "X-Linked-Etag": '"../../../x"'}),
    "commit": Fault("headers", "hub", "/resolve/", value={"X-Repo-Commit": "../../x"}),
    "disposition": Fault("headers", value={"Content-Disposition": 'attachment; filename="../../../x"'}),
    "cookie": Fault("headers", "hub", value={"Set-Cookie": "a=b; Domain=localhost"}, times=None),
    "type": Fault("headers", value={"Content-Type": "text/x-python; name=../../x"}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lead_nowhere(name: str, root: Path, hub: Hub, user: Client, tmp_path: Path) -> None:
    hub.faults.append(HEADERS[name])
    before = tree(tmp_path)
    assert json_of(user.pull(HF_TOKEN=TOKEN))["sha256"] == sha256(root / READY / FILE)
    check_inside(before, tmp_path)
    assert hub.tokens_seen("cdn") == []
    assert set(hub.tokens_seen("hub")) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("sha", ["../../x", "", None, 7, "0" * 39, "g" * 40], ids=repr)
def test_a_commit_that_is_none(sha: object, hub: Hub, user: Client, tmp_path: Path) -> None:
    hub.faults.append(Fault("body", "hub", "/revision/", value=_commit_of(sha), times=None))
    before = tree(tmp_path)
    result = user.pull(timeout=5)
    check_refused(result, user)
    assert result.returncode == 4
    check_inside(before, tmp_path)


_NO_ADDRESS = [
    *("file:///etc/passwd", "ftp://localhost/x", "javascript:x", "http://", "http://[::1", "\x7f\x80\xff"),
    *("http://localhost:99999/x", "data:text/plain,x", "/\x0b\x1b[31mred", "//", "http://localhost:0/x"),
]


@pytest.mark.parametrize(
    ("match", "location"),
    [
        *(("/resolve/", location) for location in _NO_ADDRESS),
        ("/revision/", "javascript:x"),
        ("/tree/", "file:///etc/passwd"),
    ],
)
def test_addresses_that_are_none(location: str, match: str, hub: Hub, user: Client) -> None:
    hub.faults.append(Fault("redirect", "hub", match, value=location, times=None))
    result = user.pull(timeout=5, HF_TOKEN=TOKEN)
    check_refused(result, user)
    assert result.returncode == 4
    assert "root:" not in result.stderr
    assert TOKEN not in result.stdout + result.stderr


LURES = {
    "redirect of the model": Fault("redirect", "hub", "/revision/", value="CDN/x", times=None),
    "redirect of the list": Fault("redirect", "hub", "/tree/", value="CDN/x", times=None),
    "next page": Fault("headers", "hub", "/tree/", value={"Link": '<CDN/x>; rel="next"'}, times=None),
    "next page by name": Fault("headers", "hub", "/tree/", value={"Link": '<//CDN/x>; rel="next"'}, times=None),
    "the same, with a name": Fault("redirect", "hub", "/tree/", value="http://127.0.0.1@CDN/x", times=None),
    "to itself": Fault("redirect", "hub", "/resolve/", value="HUB/acme/x/resolve/main/y", times=None),
}


@pytest.mark.parametrize("name", LURES)
def test_the_token_stays_at_home(name: str, hub: Hub, user: Client) -> None:
    fault = LURES[name]
    where = {"CDN": hub.cdn.removeprefix("http://") if "//" in str(fault.value) else hub.cdn, "HUB": hub.endpoint}
    text = json.dumps(fault.value)
    for word, address in where.items():
        text = text.replace(word, address)
    hub.faults.append(Fault(fault.kind, fault.origin, fault.match, None, value=json.loads(text)))
    result = user.pull(timeout=5, HF_TOKEN=TOKEN)
    check_refused(result, user)
    assert hub.tokens_seen("cdn") == []
    assert TOKEN not in result.stdout + result.stderr


# -- code


def test_code_is_not_fetched(root: Path, hub: Hub, user: Client, tmp_path: Path) -> None:
    names = ["pytorch_model.bin", "model.pt", "model.pth", "x.ckpt", "x.pkl", "modeling_phi.py", "tokenizer.py"]

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(b"import os")
        config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "modeling_phi.X"}}
        replaced("config.json", json.dumps(config).encode())(folder)

    publish_changed(hub, root, tmp_path / "copy", OFFICIAL, change)
    json_of(user.pull(source="official"))
    assert [one.path for one in hub.requests if any(name in one.path for name in names)] == []


def test_pickled_weights_alone_are_refused(root: Path, hub: Hub, user: Client, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"import os")

    publish_changed(hub, root, tmp_path / "copy", OFFICIAL, change)
    result = user.pull(source="official")
    check_refused(result, user)
    assert "safetensors" in result.stderr
    assert [one.path for one in hub.requests if ".bin" in one.path] == []


def test_a_file_that_cannot_be_loaded_is_refused_each_time(root: Path, hub: Hub, user: Client, tmp_path: Path) -> None:
    """Its metadata would be mended, but its block count is not that of its tensors."""

    def change(folder: Path) -> None:
        (folder / FILE).unlink()
        write_flawed(root / READY / FILE, folder / FILE, block_count=99)

    publish_changed(hub, root, tmp_path / "copy", READY, change)
    for _ in range(2):
        result = user.pull()
        check_refused(result, user)
        assert result.returncode == 5
        assert "block_count" in result.stderr
    assert BUILD not in user.run("list").stdout
