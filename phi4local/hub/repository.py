"""What a repository holds at one commit, asked through huggingface_hub with bounded answers.

GET /api/models/ORG/NAME/revision/REV       the commit
GET /api/models/ORG/NAME/tree/COMMIT        every file: bytes, git's sha1, and the sha256 of large ones
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from phi4local.errors import DownloadError, NotFound, Phi4LocalError, UsageError
from phi4local.hub.body import ELSEWHERE, Address, hint_for_access
from phi4local.printing import printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}", re.ASCII)
_NAME = re.compile(r"\w[\w.\-+]{0,199}(/\w[\w.\-+]{0,199}){0,4}", re.ASCII)
_MOST_ENTRIES = 20_000
_LARGEST_BYTES = 1 << 42


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. `sha256` is known of large files; `blob` is git's sha1 of `blob SIZE\\0` + content."""

    name: str
    bytes: int
    sha256: str | None
    blob: str

    @property
    def expected(self) -> str:
        """What a `new_hash` of the whole file must come to."""
        return self.sha256 or self.blob

    def new_hash(self) -> hashlib._Hash:
        """An empty sha256; of a small file git's sha1, which the hub lists instead."""
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.bytes, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit; files whose names are not plain are left out."""

    endpoint: str
    repository: str
    revision: str
    files: dict[str, RemoteFile]
    token: str | None
    timeout_seconds: float

    def file(self, name: str) -> RemoteFile:
        """A file of that name (NotFound)."""
        if name not in self.files:
            raise NotFound(
                f"{self.repository} has no file `{printable(name)}` at {self.revision[:12]}",
                hint="It may have moved; with `--from official` the build is made here",
            )
        return self.files[name]

    def address(self, file: RemoteFile) -> Address:
        """Where the file's bytes are asked for."""
        path = f"/{self.repository}/resolve/{self.revision}/{quote(file.name)}"
        return Address(self.endpoint, path, file.name, file.bytes, self.token, self.timeout_seconds)


def check_environment() -> None:
    """Refuse settings that huggingface_hub would fail on when it is imported (UsageError)."""
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        text = os.environ.get(name)
        if text and not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= 3600):
            raise UsageError(f"{name} is `{printable(text)}`, not a number of seconds", hint=f"unset {name}")
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and not os.path.isfile(certificates):  # noqa: PTH113  never raises
        raise UsageError(f"SSL_CERT_FILE names no file: `{printable(certificates)}`", hint="unset SSL_CERT_FILE")
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint == "":
        del os.environ["HF_ENDPOINT"]  # the library takes an empty one for an address
    if endpoint and not _is_address(endpoint):
        raise UsageError(f"HF_ENDPOINT is `{printable(endpoint)}`, which is no address", hint="unset HF_ENDPOINT")


def _is_address(url: str) -> bool:
    if not re.fullmatch(r"https?://([\w.\-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?(/[\w.\-/]*)?", url, re.ASCII):
        return False
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def is_offline() -> bool:
    """Whether the environment forbids the network (HF_HUB_OFFLINE)."""
    check_environment()
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def look_up(repository: str, revision: str | None) -> Snapshot:
    """The repository at a revision, by default its newest (DownloadError, NotFound)."""
    check_environment()
    from huggingface_hub import HfApi, constants, get_token

    from phi4local.hub.metadata import bounded_client

    if not _REPOSITORY.fullmatch(repository):
        raise NotFound(f"`{printable(repository)}` is no repository's name", hint="A name is like microsoft/phi-4")
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it prints what a server's headers say
    constants.HF_HUB_DISABLE_TELEMETRY = True  # else it asks the endpoint which programs to report
    endpoint, token = constants.ENDPOINT.rstrip("/"), get_token()
    if token and not (token.isascii() and token.isprintable()):
        raise UsageError("The token in HF_TOKEN holds characters that no token has", hint="Copy it again, or unset it")
    with _translated(repository, revision), bounded_client(endpoint):
        api = HfApi(endpoint=endpoint, token=token or False)
        commit = api.model_info(repository, revision=revision or "main").sha
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise ValueError("no commit")
        if revision and _COMMIT.fullmatch(revision) and commit != revision:
            raise DownloadError(f"The hub names another commit of {repository} than was asked for", hint=ELSEWHERE)
        files = _files(api, repository, commit)
    return Snapshot(endpoint, repository, commit, files, token, float(constants.HF_HUB_DOWNLOAD_TIMEOUT))


def _files(api: HfApi, repository: str, commit: str) -> dict[str, RemoteFile]:
    tree = api.list_repo_tree(repository, recursive=True, revision=commit)
    entries = list(islice(tree, _MOST_ENTRIES + 1))
    if len(entries) > _MOST_ENTRIES:
        raise DownloadError(f"The hub lists more than {_MOST_ENTRIES} files in {repository}", hint=ELSEWHERE)
    return {file.name: file for file in map(_file, entries) if file}


def _file(entry: Any) -> RemoteFile | None:
    """A listed file; None for folders and for names and values that no file here needs."""
    name, size, blob = (getattr(entry, key, None) for key in ("path", "size", "blob_id"))
    large = getattr(entry, "lfs", None)
    sha256 = large.sha256 if large else None
    size = large.size if large else size
    plain = isinstance(name, str) and _NAME.fullmatch(name) and type(size) is int and 0 <= size < _LARGEST_BYTES
    hashed = isinstance(blob, str) and _COMMIT.fullmatch(blob)
    if not plain or not hashed or not (sha256 is None or (isinstance(sha256, str) and _SHA256.fullmatch(sha256))):
        return None
    return RemoteFile(str(name), int(size or 0), sha256, str(blob))


@contextlib.contextmanager
def _translated(repository: str, revision: str | None) -> Iterator[None]:
    """What huggingface_hub raises, in our words."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    at = f" at `{printable(revision)}`" if revision else ""
    try:
        yield
    except Phi4LocalError:
        raise
    except GatedRepoError:
        raise DownloadError(f"{repository} is gated", hint=hint_for_access("GatedRepo")) from None
    except RevisionNotFoundError:
        raise NotFound(f"The hub has no {repository}{at}", hint="The catalogue's entry is out of date") from None
    except RepositoryNotFoundError:
        raise NotFound(f"The hub has no {repository}, or shows it to nobody", hint=hint_for_access("")) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise DownloadError(f"The hub answered {status} for {repository}", hint=ELSEWHERE) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise DownloadError(f"The hub cannot be asked: {printable(str(error))[:200]}", hint=ELSEWHERE) from None
    except (ValueError, KeyError, TypeError, AttributeError, LookupError, RecursionError):
        raise DownloadError(f"The hub's answer about {repository} is not what a hub says", hint=ELSEWHERE) from None
