"""A loopback copy of the Hugging Face Hub that misbehaves on command, for tests and benchmarks of pulls.

Two origins, as the real one has: the hub on 127.0.0.1 and the server of large files on localhost. A folder
`ORG/NAME/files...` is a repository with one commit; a published folder must stay as it is while it is served.

As a script: `python tests/hub.py ROOT [--rate BYTES_PER_SECOND]` prints the endpoint and serves until killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tests.hub_delivery import Bucket, Delivery, Log, Request, is_reset
from tests.hub_faults import JSON, KINDS, Answer, Asked, Fault, View, take

__all__ = ["Hub", "Fault", "Request"]

LARGE_SUFFIXES = (".gguf", ".safetensors")


# -- what there is to serve


@dataclass(frozen=True)
class Stored:
    """A file of a commit. `oid` is its git blob's sha1, of a large file that of its LFS pointer."""

    path: Path
    size: int
    oid: str
    sha256: str | None = None
    pointer_size: int = 0

    def entry(self, name: str) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return {"type": "file", "oid": self.oid, "size": self.size, "path": name} | (
            {"lfs": lfs} if self.sha256 else {}
        )


@dataclass(frozen=True)
class Commit:
    sha: str
    files: dict[str, Stored]

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Files and the folders above them, by path."""
        found = {name: stored.entry(name) for name, stored in self.files.items()}
        for name in self.files:
            for parent in list(Path(name).parents)[:-1]:
                oid = hashlib.sha1(f"{self.sha} {parent}".encode()).hexdigest()
                found[str(parent)] = {"type": "directory", "oid": oid, "size": 0, "path": str(parent)}
        return [found[name] for name in sorted(found)]


def _stored(path: Path, lfs_bytes: int) -> Stored:
    size = path.stat().st_size
    if size < lfs_bytes and path.suffix not in LARGE_SUFFIXES:
        return Stored(path, size, _blob_sha1(path.read_bytes()))
    with path.open("rb") as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return Stored(path, size, _blob_sha1(pointer), sha256, len(pointer))


def _blob_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _read_commit(folder: Path, lfs_bytes: int) -> Commit:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _stored(path, lfs_bytes) for path in paths}
    names = "".join(f"{stored.oid} {name}\0" for name, stored in files.items())
    return Commit(hashlib.sha1(names.encode()).hexdigest(), files)


# -- the hub


class Refused(Exception):
    """An answer of the real Hub that is not 200."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Hub:
    """Serves `root` until closed. Settings and `faults` may be changed at any time, `lfs_bytes` before a publish."""

    def __init__(self, root: Path | str, *, lfs_bytes: int = 1_000_000, rate: float | None = None) -> None:
        self.root, self.lfs_bytes = Path(root), lfs_bytes
        self.faults: list[Fault] = []
        self.gated: set[str] = set()
        self.token = "hf_loopback"
        self.page_size = 1000
        self.sign_seconds = 3600.0
        self.drop_every: int | None = None
        self.bucket, self.log, self.closing = Bucket(rate), Log(), threading.Event()
        self._lock = threading.RLock()
        self._revisions: dict[str, dict[str, Commit]] = {}
        self._signed: dict[str, tuple[Stored, float]] = {}
        for folder in sorted(self.root.glob("*/*")):
            if folder.is_dir():
                self.publish(folder.relative_to(self.root).as_posix(), folder)
        self._servers = [_Server(self, origin) for origin in ("hub", "cdn")]
        ports = [server.server_address[1] for server in self._servers]
        self.endpoint, self.cdn = f"http://127.0.0.1:{ports[0]}", f"http://localhost:{ports[1]}"

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()
        if kind is None and self.log.errors:
            raise RuntimeError("the hub itself failed") from self.log.errors[0]

    def close(self) -> None:
        """Break off whatever is under way."""
        self.closing.set()
        for server in self._servers:
            server.close()

    # what a test sets and asks

    @property
    def rate(self) -> float | None:
        """Bytes per second that leave the origin of large files, over all connections together."""
        return self.bucket.rate

    @rate.setter
    def rate(self, rate: float | None) -> None:
        self.bucket.rate = rate

    @property
    def requests(self) -> list[Request]:
        """Those that have ended; one whose last bytes are just leaving is waited for."""
        self.log.settle(1.0, nearly_done_only=True)
        return self.log.ended

    def settle(self, timeout: float = 5.0) -> bool:
        """Wait until no request is under way, as after a client was killed. False: some still are."""
        return self.log.settle(timeout)

    def sent_bytes(self, path_suffix: str = "") -> int:
        """Bytes of large files that arrived, of those whose path ends so."""
        found = [one for one in list(self.requests) if one.origin == "cdn"]
        return sum(one.sent_bytes for one in found if unquote(urlsplit(one.path).path).endswith(path_suffix))

    def tokens_seen(self, origin: str) -> list[str]:
        """The Authorization headers that reached an origin."""
        return [token for where, token in self.log.tokens if where == origin]

    def publish(self, repo: str, folder: Path | str) -> str:
        """Move `main` to what is in `folder`; the sha of the new commit."""
        commit = _read_commit(Path(folder), self.lfs_bytes)
        with self._lock:
            self._revisions.setdefault(repo, {}).update({commit.sha: commit, "main": commit})
        return commit.sha

    def alias(self, repo: str, revision: str) -> None:
        """Let a revision name what `main` has now: a commit if it looks like one, otherwise a branch."""
        with self._lock:
            commit = self._revisions[repo]["main"]
            is_sha = re.fullmatch(r"[0-9a-f]{40}", revision)
            self._revisions[repo][revision] = replace(commit, sha=revision) if is_sha else commit

    def sha(self, repo: str, revision: str = "main") -> str:
        """The commit that a revision names."""
        return self._revisions[repo][revision].sha

    # what a client gets

    def answer(self, asked: Asked) -> Answer:
        """The right answer, changed by the first fault that fits."""
        with self._lock:
            fault = take(self.faults, asked)
        try:
            answer = self._right_answer(asked)
        except Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            answer = _json(error.status, {"error": str(error)}, headers)
        if fault is not None:
            KINDS[fault.kind](answer, fault, asked)
        return answer

    def _right_answer(self, asked: Asked) -> Answer:
        path = urlsplit(asked.path).path
        for pattern, reply in _ROUTES[asked.origin]:
            if found := re.fullmatch(pattern, path):
                return reply(self, asked, *(unquote(part) if part else part for part in found.groups()))
        raise Refused(404, "EntryNotFound", "Sorry, we can't find the page you are looking for.")

    def _commit(self, asked: Asked, repo: str, revision: str | None) -> Commit:
        with self._lock:
            revisions = self._revisions.get(repo)
        if revisions is None:
            status = 404 if "authorization" in asked.headers else 401
            raise Refused(status, "RepoNotFound", "Repository not found")
        if (revision or "main") not in revisions:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return revisions[revision or "main"]

    def _file(self, asked: Asked, repo: str, revision: str, name: str) -> tuple[Commit, Stored]:
        commit = self._commit(asked, repo, revision)
        if repo in self.gated and asked.headers.get("authorization") != f"Bearer {self.token}":
            raise Refused(403, "GatedRepo", f"Access to model {repo} is restricted.")
        if name not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        return commit, commit.files[name]

    def _info(self, asked: Asked, repo: str, revision: str | None) -> Answer:
        commit = self._commit(asked, repo, revision)
        value: dict[str, Any] = {
            "_id": commit.sha[:24],
            "id": repo,
            "modelId": repo,
            "author": repo.split("/")[0],
            "sha": commit.sha,
        }
        value |= {"private": False, "gated": "auto" if repo in self.gated else False, "disabled": False, "tags": []}
        return _json(200, value | {"siblings": [{"rfilename": name} for name in commit.files]})

    def _tree(self, asked: Asked, repo: str, revision: str) -> Answer:
        commit = self._commit(asked, repo, revision)
        deep, cursor = asked.query.get("recursive", "").lower() in ("true", "1"), int(asked.query.get("cursor", "0"))
        entries = [entry for entry in commit.entries if deep or "/" not in entry["path"]]
        end = cursor + self.page_size
        link = {"Link": asked.next_page(end)} if end < len(entries) else {}
        return _json(200, entries[cursor:end], link)

    def _resolve(self, asked: Asked, repo: str, revision: str, name: str) -> Answer:
        commit, stored = self._file(asked, repo, revision, name)
        place = quote(f"{repo}/{commit.sha}/{name}")
        if stored.sha256 is None:
            return Answer(307, {"Location": f"/api/resolve-cache/models/{place}", "Content-Type": "text/plain"})
        signature = secrets.token_hex(16)
        with self._lock:
            self._signed[signature] = stored, time.monotonic() + self.sign_seconds
        headers = {"Location": f"{self.cdn}/signed/{signature}/{place}", "Content-Type": "text/plain"}
        linked = {"X-Linked-Etag": f'"{stored.sha256}"', "X-Linked-Size": str(stored.size)}
        return Answer(302, headers | linked | {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"})

    def _cached(self, asked: Asked, repo: str, revision: str, name: str) -> Answer:
        commit, stored = self._file(asked, repo, revision, name)
        return _whole(stored, {"ETag": f'"{stored.oid}"', "X-Repo-Commit": commit.sha})

    def _large(self, _asked: Asked, signature: str, name: str) -> Answer:
        with self._lock:
            stored, until = self._signed.get(signature, (None, 0.0))
        if stored is None or time.monotonic() >= until:
            body = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>\n"
            return Answer(403, {"Content-Type": "application/xml"}, View(body, len(body)))
        plain = quote(Path(name).name)
        return _whole(
            stored, {"ETag": f'"{stored.sha256}"', "Content-Disposition": f"inline; filename*=UTF-8''{plain}"}
        )


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> Answer:
    body = json.dumps(value).encode()
    return Answer(status, {"Content-Type": JSON} | (headers or {}), View(body, len(body)))


def _whole(stored: Stored, headers: dict[str, str]) -> Answer:
    common = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    return Answer(200, common | headers, View(stored.path, stored.size), ranged=True)


_REPO = "([^/]+/[^/]+)"
_ROUTES: dict[str, list[tuple[str, Callable[..., Answer]]]] = {
    "hub": [
        (f"/api/models/{_REPO}(?:/revision/([^/]+))?", Hub._info),
        (f"/api/models/{_REPO}/tree/([^/]+)/?", Hub._tree),
        (f"/api/resolve-cache/models/{_REPO}/([^/]+)/(.+)", Hub._cached),
        (f"/{_REPO}/resolve/([^/]+)/(.+)", Hub._resolve),
    ],
    "cdn": [("/signed/([^/]+)/(.+)", Hub._large)],
}


# -- its two servers


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: Hub, origin: str) -> None:
        self.hub, self.origin = hub, origin
        self._open: set[socket.socket] = set()
        self._closed = threading.Condition()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._closed:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A FIN and the end, or at once the end."""
        if is_reset(request):
            self.close_request(request)
        else:
            super().shutdown_request(request)
        with self._closed:
            self._open.discard(request)
            self._closed.notify_all()

    def handle_error(self, *_: Any) -> None:
        """Clients break connections as they like; anything else is a mistake of ours."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.hub.log.errors.append(error)

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        with self._closed:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the client was faster
            self._closed.wait_for(lambda: not self._open, 0.4)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.server.origin, self.path, headers)
        with hub.log.under_way(asked):
            answer = hub.answer(asked)
            start, stop = answer.part(asked)
            if asked.origin == "cdn" and answer.ending == "keep" and hub.drop_every and stop - start > hub.drop_every:
                answer.ending, answer.stop_after = "cut", hub.drop_every
            if asked.method == "HEAD":
                stop, answer.stream = start, None
            buckets = [hub.bucket] if asked.origin == "cdn" else []
            if answer.rate is not None:
                buckets.append(Bucket(answer.rate))
            delivery = Delivery(self.connection, buckets, hub.closing, lambda: hub.log.last(asked))
            sent, alive = delivery.send(answer, start, stop)
            hub.log.end(asked, 0 if answer.stop_after == -1 else answer.status, sent)
        self.close_connection = self.close_connection or not alive

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve ROOT/ORG/NAME as the Hugging Face Hub would.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--rate", type=float)
    asked = parser.parse_args()
    with Hub(asked.root, rate=asked.rate) as hub:
        sys.stdout.write(hub.endpoint + "\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
