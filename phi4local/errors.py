"""Every error that a user can cause or meet, as one tree; the class carries the exit code.

    Phi4LocalError 1
    ├── UsageError 2              the request makes no sense
    ├── NotFound 3                model, file or revision absent
    ├── DownloadError 4           network or hub refused
    ├── FormatError 5             a file is not what it claims
    ├── InsufficientResources 6   will not fit in memory or on disk
    └── BackendError 7            engine missing, failed to load, crashed

Raise where the reason is known; `cli.main` alone prints. Anything outside this tree is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class Phi4LocalError(Exception):
    """The fact in the user's own words, and `hint`: what to do or type next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(Phi4LocalError):
    """The request makes no sense."""

    exit_code = 2


class NotFound(Phi4LocalError):
    """A model, file or revision is absent."""

    exit_code = 3


class DownloadError(Phi4LocalError):
    """The network or the hub refused."""

    exit_code = 4


class FormatError(Phi4LocalError):
    """A file is not what it claims to be."""

    exit_code = 5


class InsufficientResources(Phi4LocalError):
    """Something will not fit in memory or on disk."""

    exit_code = 6


class DoesNotFit(InsufficientResources):
    """A model needs more memory than there is; `options` are arguments with which the same file would fit."""

    def __init__(self, message: str, *, hint: str = "", options: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.options = tuple(options)


class BackendError(Phi4LocalError):
    """The engine is missing, failed to load or crashed."""

    exit_code = 7
