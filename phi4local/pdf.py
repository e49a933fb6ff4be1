"""The text of a PDF: standard input in, one JSON object out. Run as a process of its own, by `phi4local.documents`.

What it reads is made by strangers, and a parser of PDFs can be kept busy without end, so the process bounds itself.
It is run by its path and imports nothing of ours. Only here is pypdf imported.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import time
from collections.abc import Iterable
from typing import Any

_MEMORY_BYTES = 1 << 30
_CPU_SECONDS = 30  # only where nobody is left to end it


def main(most_bytes: int, most_characters: int, seconds: float) -> None:
    """Answer on standard output; what `seconds` do not suffice for is left out."""
    until = time.monotonic() + seconds
    _bound()
    logging.disable()  # pypdf tells every oddity of a file
    answer = answer_to(sys.stdin.buffer.read(most_bytes), most_characters, until)
    sys.stdout.buffer.write(json.dumps(answer).encode())


def _bound() -> None:
    """Cap memory and processor time, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, cap in ((resource.RLIMIT_AS, _MEMORY_BYTES), (resource.RLIMIT_CPU, _CPU_SECONDS)):
        _, most = resource.getrlimit(kind)
        with contextlib.suppress(ValueError, OSError):  # macOS knows the limit of memory and refuses to set it
            resource.setrlimit(kind, (cap if most == resource.RLIM_INFINITY else min(cap, most), most))


def answer_to(data: bytes, most_characters: int, until: float) -> dict[str, Any]:
    """The text and how many pages it is of, or `problem`, a word that `phi4local.documents` has a sentence for."""
    from pypdf import PdfReader, overwrite_configuration
    from pypdf.errors import DependencyError, FileNotDecryptedError

    overwrite_configuration(jbig2dec_binary=None)  # pictures are not looked at: no file has another program run
    is_encrypted = False
    try:
        reader = PdfReader(io.BytesIO(data))
        is_encrypted = reader.is_encrypted
        answer = _read(reader.pages, most_characters, until)
    except (FileNotDecryptedError, DependencyError):  # the second: a cipher that needs another package
        answer, is_encrypted = {"problem": "damaged"}, True
    except MemoryError:
        answer = {"problem": "memory"}
    except Exception:  # noqa: BLE001  broken files raise what they like: AttributeError, RecursionError, ...
        answer = {"problem": "damaged"}
    return {"problem": "encrypted"} if is_encrypted and answer.get("problem") == "damaged" else answer


def _read(pages: Iterable[Any], most_characters: int, until: float) -> dict[str, Any]:
    """Page for page as far as characters and time allow; one that cannot be read costs the others nothing."""
    texts: list[str] = []
    every = list(pages)
    taken = failed = 0
    left, cut = most_characters, False
    for page in every:
        if left <= 0 or (taken and time.monotonic() > until):
            break
        taken += 1
        try:
            text = page.extract_text().strip("\n")
        except Exception:  # noqa: BLE001  as above; a MemoryError too: what the page took is free again
            failed += 1
            continue
        if text.strip():
            texts.append(text[:left])
            cut = len(text) > left
            left -= len(text) + 2
    if failed == taken:
        return {"problem": "damaged"}
    return {"text": "\n\n".join(texts), "pages": len(every), "taken": taken, "failed": failed, "cut": cut}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
