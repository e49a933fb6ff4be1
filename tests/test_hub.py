"""The loopback Hub answers as the real one does, fails as it is told to, and counts what arrived."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.hub import Fault, Hub
from tests.hub_faults import KINDS, PORTAL

REPO, LARGE, SMALL = "org/model", "w/model.gguf", "config.json"
DATA = bytes(range(256)) * 12_000  # 3 MB
SHA256 = hashlib.sha256(DATA).hexdigest()
TREE = f"/api/models/{REPO}/tree/main?recursive=true"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for name, data in {LARGE: DATA, SMALL: b"{}", "a b/ü.txt": b"text"}.items():
        path = folder / REPO / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    with Hub(root) as running:
        yield running
        closing = time.monotonic()
    assert time.monotonic() - closing < 1


class Reply:
    """What a client got: the head, and as much of the body as came before `error`."""

    def __init__(self, url: str, method: str = "GET", timeout: float = 10, **headers: str) -> None:
        parts = urlsplit(url)
        asked = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
        self.status, self.headers, self.body = 0, http.client.HTTPMessage(), b""
        self.error: Exception | None = None
        try:
            connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=asked)
            response = connection.getresponse()
            self.status, self.headers = response.status, response.headers
            while block := response.read1(1 << 16):
                self.body += block
                if len(self.body) > 5_000_000:
                    break
            missing = response.length
            response.close()
            if missing and method == "GET":
                self.error = EOFError()
        except (OSError, http.client.HTTPException) as error:
            self.error = error
        finally:
            connection.close()

    def json(self) -> Any:
        return json.loads(self.body)


def signed(hub: Hub, name: str = LARGE) -> str:
    return str(Reply(f"{hub.endpoint}/{REPO}/resolve/main/{name}", "HEAD").headers["Location"])


# -- without faults


def test_what_a_model_is(hub: Hub) -> None:
    for path in (
        f"/api/models/{REPO}",
        f"/api/models/{REPO}/revision/main",
        f"/api/models/{REPO}/revision/{hub.sha(REPO)}",
    ):
        value = Reply(hub.endpoint + path).json()
        assert (value["id"], value["modelId"], value["sha"]) == (REPO, REPO, hub.sha(REPO))
        assert {one["rfilename"] for one in value["siblings"]} == {LARGE, SMALL, "a b/ü.txt"}


def test_the_tree_and_its_pages(hub: Hub) -> None:
    whole = Reply(hub.endpoint + TREE)
    assert "Link" not in whole.headers
    entries = {one["path"]: one for one in whole.json()}
    assert [name for name, one in entries.items() if one["type"] == "directory"] == ["a b", "w"]
    assert entries[SMALL] == {"type": "file", "oid": hashlib.sha1(b"blob 2\0{}").hexdigest(), "size": 2, "path": SMALL}
    pointer = entries[LARGE]["lfs"].pop("pointerSize")
    assert 120 < pointer < 140
    assert entries[LARGE]["lfs"] == {"oid": SHA256, "size": len(DATA)}
    hub.page_size, url, found = 2, hub.endpoint + TREE, []
    while url:
        page = Reply(url)
        found += page.json()
        url = page.headers.get("Link", "").partition(">")[0].lstrip("<")
    assert [one["path"] for one in found] == list(entries)


def test_a_small_file_is_served_by_the_hub(hub: Hub) -> None:
    first = Reply(f"{hub.endpoint}/{REPO}/resolve/main/a%20b/%C3%BC.txt")
    assert first.status == 307
    assert first.headers["Location"].startswith("/api/resolve-cache/models/")
    second = Reply(hub.endpoint + first.headers["Location"])
    assert (second.status, second.body, second.headers["X-Repo-Commit"]) == (200, b"text", hub.sha(REPO))
    assert second.headers["ETag"] == f'"{hashlib.sha1(b"blob 4" + bytes(1) + b"text").hexdigest()}"'


def test_a_large_file_is_served_by_another_origin(hub: Hub) -> None:
    first = Reply(f"{hub.endpoint}/{REPO}/resolve/main/{LARGE}", "HEAD")
    linked = (first.headers["X-Linked-Etag"], first.headers["X-Linked-Size"], first.headers["X-Repo-Commit"])
    assert (first.status, linked) == (302, (f'"{SHA256}"', str(len(DATA)), hub.sha(REPO)))
    url = first.headers["Location"]
    assert urlsplit(url).hostname == "localhost"
    assert urlsplit(hub.endpoint).hostname == "127.0.0.1"
    assert Reply(url).body == DATA
    assert int(Reply(url, "HEAD").headers["Content-Length"]) == len(DATA)
    assert hub.sent_bytes() == hub.sent_bytes(LARGE) == len(DATA)
    assert hub.sent_bytes("other") == 0


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=5-", 206, 5, len(DATA)),
        ("bytes=5-9", 206, 5, 10),
        ("bytes=0-99999999", 206, 0, len(DATA)),
        ("x", 200, 0, len(DATA)),
    ],
)
def test_ranges(hub: Hub, asked: str, status: int, start: int, stop: int) -> None:
    reply = Reply(signed(hub), Range=asked)
    assert (reply.status, reply.body) == (status, DATA[start:stop])
    assert reply.headers["Content-Range"] == (f"bytes {start}-{stop - 1}/{len(DATA)}" if status == 206 else None)
    assert hub.requests[-1].range_start == (start if status == 206 else None)


def test_a_range_beyond_the_end(hub: Hub) -> None:
    reply = Reply(signed(hub), Range=f"bytes={len(DATA)}-")
    assert (reply.status, reply.headers["Content-Range"], reply.error) == (416, f"bytes */{len(DATA)}", None)


def test_errors(hub: Hub) -> None:
    hub.gated.add(REPO)
    mine = f"Bearer {hub.token}"
    cases: list[tuple[str, dict[str, str], int, str]] = [
        ("/api/models/no/body", {}, 401, "RepoNotFound"),
        ("/api/models/no/body", {"Authorization": mine}, 404, "RepoNotFound"),
        (f"/api/models/{REPO}/revision/{'0' * 40}", {}, 404, "RevisionNotFound"),
        (f"/{REPO}/resolve/main/{SMALL}", {}, 403, "GatedRepo"),
        (f"/{REPO}/resolve/main/../{SMALL}", {"Authorization": mine}, 404, "EntryNotFound"),
    ]
    for path, headers, status, code in cases:
        reply = Reply(hub.endpoint + path, "GET", 10, **headers)
        assert (reply.status, reply.headers["X-Error-Code"]) == (status, code)
    assert Reply(f"{hub.endpoint}/{REPO}/resolve/main/{SMALL}", Authorization=mine).status == 307
    hub.gated.clear()
    hub.sign_seconds = -1
    assert Reply(signed(hub)).status == 403


def test_main_moves_and_a_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    before = hub.sha(REPO)
    hub.alias(REPO, "f" * 40)
    (tmp_path / "new.txt").write_text("new")
    after = hub.publish(REPO, tmp_path)
    shas = {
        name: Reply(f"{hub.endpoint}/api/models/{REPO}/revision/{name}").json()["sha"] for name in ("main", "f" * 40)
    }
    assert shas == {"main": after, "f" * 40: "f" * 40}
    assert Reply(f"{hub.endpoint}/{REPO}/resolve/{before}/{SMALL}").status == 307
    assert Reply(f"{hub.endpoint}/{REPO}/resolve/main/{SMALL}").status == 404


# -- what is counted


def test_tokens_and_requests_are_logged(hub: Hub) -> None:
    Reply(f"{hub.endpoint}/{REPO}/resolve/main/{LARGE}", Authorization="Bearer x")
    Reply(signed(hub), Range="bytes=9-")
    assert (hub.tokens_seen("hub"), hub.tokens_seen("cdn")) == (["Bearer x"], [])
    last = hub.requests[-1]
    assert (last.method, last.origin, last.range_start, last.status) == ("GET", "cdn", 9, 206)
    assert last.headers["range"] == "bytes=9-"


def test_two_requests_of_one_connection(hub: Hub) -> None:
    url = urlsplit(signed(hub))
    with contextlib.closing(http.client.HTTPConnection(url.netloc, timeout=10)) as connection:
        for _ in range(2):
            connection.request("GET", url.path)
            assert connection.getresponse().read() == DATA
    assert hub.sent_bytes() == 2 * len(DATA)


def test_a_client_that_leaves_is_sent_what_it_got(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "org" / "huge"
    folder.mkdir(parents=True)
    with (folder / "huge.gguf").open("wb") as handle:
        handle.truncate(64 << 20)
    with Hub(tmp_path) as hub:
        url = urlsplit(Reply(f"{hub.endpoint}/org/huge/resolve/main/huge.gguf").headers["Location"])
        with socket.create_connection((str(url.hostname), int(url.port or 0))) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
            client.sendall(f"GET {url.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = sum(len(client.recv(1 << 16)) for _ in range(20))
            time.sleep(0.1)  # what the kernel holds for us counts too
        assert hub.settle()
        assert got - 1000 < hub.sent_bytes() < got + (1 << 20)


def test_a_rate_is_shared_by_all(hub: Hub) -> None:
    url = signed(hub)
    hub.rate = 3_000_000
    parts = [subprocess.Popen([sys.executable, "-c", _FETCH, url, asked]) for asked in ("0-1499999", "1500000-2999999")]
    started = time.monotonic()
    assert [part.wait(20) for part in parts] == [0, 0]
    assert 0.8 < time.monotonic() - started < 4
    assert hub.sent_bytes() == 3_000_000


_FETCH = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Range": "bytes=" + sys.argv[2]})
with urllib.request.urlopen(request) as reply:
    sys.exit(len(reply.read()) != 1_500_000)
"""


def test_every_response_is_cut(hub: Hub) -> None:
    hub.drop_every = 1_000_000
    url = signed(hub)
    sizes = [len(Reply(url, Range=f"bytes={start}-").body) for start in (0, 1_000_000, 2_000_000, 3_000_000)]
    assert sizes == [1_000_000, 1_000_000, 1_000_000, len(DATA) - 3_000_000]


# -- faults of the origin of large files


def _flipped(position: int) -> bytes:
    return DATA[:position] + bytes([DATA[position] ^ 1]) + DATA[position + 1 :]


CDN: dict[str, tuple[dict[str, Any], dict[str, str], int, bytes, type[Exception] | None]] = {
    "cut": ({"after_bytes": 100_000}, {}, 200, DATA[:100_000], EOFError),
    "reset": ({"after_bytes": 100_000}, {}, 200, DATA[:100_000], ConnectionResetError),
    "stall": ({"after_bytes": 100_000}, {}, 200, DATA[:100_000], TimeoutError),
    "slow": ({"value": 200_000}, {"Range": "bytes=0-99999"}, 206, DATA[:100_000], None),
    "flip": ({"value": 2_000_000}, {"Range": "bytes=1000000-"}, 206, _flipped(2_000_000)[1_000_000:], None),
    "short": ({"value": 10}, {}, 200, DATA[:-10], None),
    "long": ({"value": 10}, {}, 200, DATA + b"x" * 10, None),
    "ignore_range": ({}, {"Range": "bytes=5-"}, 200, DATA, None),
    "wrong_range": ({}, {"Range": "bytes=1000-"}, 206, DATA[500:], None),
    "status": ({"value": (503, {"Retry-After": "1"})}, {}, 503, b"as the test wished\n", None),
    "html": ({}, {"Range": "bytes=5-"}, 200, PORTAL, None),
    "headers": ({"value": {"etag": "../../x", "ETAG2": "\x1b"}}, {}, 200, DATA, None),
    "redirect": ({"value": "file:///etc/passwd"}, {}, 302, b"", None),
    "close": ({}, {}, 0, b"", http.client.RemoteDisconnected),
}


@pytest.mark.parametrize("kind", CDN)
def test_a_fault_of_the_large_files(hub: Hub, kind: str) -> None:
    settings, headers, status, body, error = CDN[kind]
    url = signed(hub)
    hub.faults = [Fault(kind, match="nothing like it", **settings), Fault(kind, match=LARGE, **settings)]
    started = time.monotonic()
    reply = Reply(url, timeout=1 if error is TimeoutError else 10, **headers)
    assert (reply.status, len(reply.body), type(reply.error)) == (status, len(body), error or type(None))
    assert reply.body == body
    assert time.monotonic() - started > (0.3 if kind == "slow" else 0)
    assert hub.settle()
    assert (hub.requests[-1].status, hub.requests[-1].sent_bytes) == (status, len(body))
    expected = {
        "headers": ("ETag", "../../x"),
        "redirect": ("Location", "file:///etc/passwd"),
        "status": ("Retry-After", "1"),
    }
    if kind in expected:
        assert reply.headers.get_all(expected[kind][0]) == [expected[kind][1]]
    assert len(hub.faults) == 1
    assert Reply(url).body == DATA


def test_a_stall_does_not_hold_the_hub_open(root: Path) -> None:
    with Hub(root) as hub:
        url = urlsplit(signed(hub))
        hub.faults.append(Fault("stall", after_bytes=10, times=None))
        client = socket.create_connection((str(url.hostname), int(url.port or 0)))
        client.sendall(f"GET {url.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(10)
        assert not hub.settle(0.1)
        started = time.monotonic()
    assert time.monotonic() - started < 1
    client.close()


# -- faults of the hub

API: dict[str, Any] = {"body": b'{"sha": 5}', "gzip_bomb": 30_000_000, "huge_tree": 2500, "endless_pages": None}


@pytest.mark.parametrize("kind", [*API, "never_ending", "status", "reset"])
def test_a_fault_of_the_hub(hub: Hub, kind: str) -> None:
    hub.faults.append(Fault(kind, origin="hub", times=None, value=API.get(kind, 429), after_bytes=-1))
    reply = Reply(hub.endpoint + TREE)
    found: dict[str, Callable[[], bool]] = {
        "body": lambda: reply.body == API["body"],
        "gzip_bomb": lambda: len(gzip.decompress(reply.body)) == API["gzip_bomb"] > 100 * len(reply.body),
        "huge_tree": lambda: len({one["path"] for one in reply.json()}) == API["huge_tree"],
        "endless_pages": lambda: 'rel="next"' in reply.headers["Link"],
        "never_ending": lambda: len(reply.body) > 5_000_000,
        "status": lambda: reply.status == 429,
        "reset": lambda: isinstance(reply.error, ConnectionResetError) and reply.status == 0,
    }
    assert found[kind]()
    if kind == "gzip_bomb":
        assert isinstance(json.loads(gzip.decompress(reply.body)), list)
    if kind == "endless_pages":
        for _ in range(5):
            assert 'rel="next"' in reply.headers["Link"]
            reply = Reply(reply.headers["Link"].partition(">")[0].lstrip("<"))
        assert reply.json()


def test_each_kind_is_tested_and_no_other_exists() -> None:
    assert set(CDN) | set(API) | {"never_ending"} == set(KINDS)
    with pytest.raises(ValueError, match="no such fault"):
        Fault("fire")


def test_as_a_script(root: Path) -> None:
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("hub.py")), str(root), "--rate", "50000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as child:
        assert child.stdout is not None
        endpoint = child.stdout.readline().strip()
        location = Reply(f"{endpoint}/{REPO}/resolve/main/{LARGE}").headers["Location"]
        assert Reply(location).body == DATA
        child.terminate()
        assert child.communicate(timeout=5) == ("", "")
