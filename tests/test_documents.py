"""Files that are attached to a message: texts, and how the model is shown them. PDFs: test_pdf.py."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from phi4local.chats import Attachment
from phi4local.documents import (
    MOST_CHARACTERS,
    MOST_PDF_BYTES,
    MOST_TEXT_BYTES,
    Document,
    as_prompt,
    read_document,
)
from phi4local.errors import FormatError, NotFound, Phi4LocalError, UsageError

KEPT = st.characters(exclude_categories=["Cs", "Cc"]) | st.just("\n") | st.just("\t")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file.txt"


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user who may not do everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@settings(deadline=None)
@given(st.text(KEPT, min_size=1).filter(str.strip), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_a_text_stays_as_it_is(text: str, encoding: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.md")
        path.write_bytes(text.removeprefix("\ufeff").encode(encoding) or b"x")
        text = text.removeprefix("\ufeff") or "x"
        assert read_document(path) == Document("a.md", path.stat().st_size, text)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text("aé\r\n\f\t\x1b\b\x85\0", max_size=50).map(str.encode))
def test_any_bytes_are_a_clean_text_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.bin")
        path.write_bytes(data)
        try:
            read = read_document(path)
        except (FormatError, UsageError) as error:
            assert "a.bin" in error.message
        else:
            assert read.text.strip()
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", read.text)


@pytest.mark.parametrize(
    ("data", "text", "notes"),
    [
        (b"a\r\nb\rc\n", "a\nb\nc\n", ()),
        (b"page\fpage", "page\npage", ()),
        (b"\x1b[31mred\x1b[0m" + b"." * 20, "\ufffd[31mred\ufffd[0m" + "." * 20, ()),
        ("Grüße, 5 €".encode("cp1252"), "Grüße, 5 €", ("Read as Windows-1252, as it is not UTF-8",)),
        ("naïve café".encode("latin-1"), "naïve café", ("Read as Windows-1252, as it is not UTF-8",)),
        (
            "größer als 20 Größen\n".encode() + b"\xff\n",
            "größer als 20 Größen\n\ufffd\n",
            ("Damaged characters that were replaced: 1",),
        ),
        ("\ufeffжил".encode("utf-16-be"), "жил", ()),
        (
            "\ufeffжил-был мышь, и дом мыши".encode("utf-16-le") + b"!",
            "жил-был мышь, и дом мыши\ufffd",
            ("Damaged characters that were replaced: 1",),
        ),
        ("\ufffd".encode() * 3, "\ufffd" * 3, ()),
    ],
)
def test_encodings(file: Path, data: bytes, text: str, notes: tuple[str, ...]) -> None:
    file.write_bytes(data)
    assert read_document(file) == Document("file.txt", len(data), text, notes=notes)


@pytest.mark.parametrize(
    "data",
    [
        random.Random(4).randbytes(500).replace(b"\0", b""),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "no mark".encode("utf-16-le"),
        b"text\0text",
        bytes(range(1, 32)),
        Path(sys.executable).read_bytes()[:100_000],
    ],
)
def test_what_is_no_text_is_refused(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(FormatError, match="is not a text"):
        read_document(file)


@pytest.mark.parametrize("name", ["a.txt", "a.pdf"])
@pytest.mark.parametrize("data", [b"", b" \r\n\t\f"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    expected = "is damaged, or no PDF" if name == "a.pdf" and data else "is empty"
    with pytest.raises(Phi4LocalError, match=expected):
        read_document(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.pdf"])
def test_only_files_are_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / name).symlink_to("pipe")
    start = time.monotonic()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(tmp_path / "socket"))
        kinds = {"folder": "a folder", "pipe": "a pipe", name: "a pipe", "socket": "a socket", "/dev/zero": "a device"}
        for path, kind in kinds.items():
            with pytest.raises(UsageError, match=f"is {kind}, not a file"):
                read_document(tmp_path / path)
    assert time.monotonic() - start < 2


def test_what_is_not_there(tmp_path: Path, file: Path) -> None:
    file.touch()
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        "absent": "There is no file",
        "file.txt/x": "There is no file",
        "broken": "a link to a file that does not exist",
        "loop": "leads back to itself",
        "x" * 300: "the name is too long",
        "nul\0": "There is no file `.*nul.x00`",
        "half\ud800": "There is no file",
        "\udcff": "There is no file `.*\ufffd`",
    }
    for name, message in cases.items():
        with pytest.raises(NotFound, match=message) as caught:
            read_document(tmp_path / name)
        assert caught.value.message.isprintable()
        caught.value.message.encode()


def test_a_file_of_somebody_else(file: Path) -> None:
    file.write_text("secret")
    file.chmod(0)
    with nobody(), pytest.raises(UsageError, match="You may not read"):
        read_document(file)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_files_of_the_kernel_tell_no_size_and_are_bounded() -> None:
    assert "MemTotal" in read_document(Path("/proc/meminfo")).text
    start = time.monotonic()
    for name in ("mem", "pagemap", "clear_refs"):
        with pytest.raises(Phi4LocalError):
            read_document(Path("/proc/self", name))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("name", "limit"), [("a.txt", MOST_TEXT_BYTES), ("a.pdf", MOST_PDF_BYTES)])
def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, name: str, limit: int) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(limit + 1)
    with pytest.raises(UsageError, match=r"is larger than (16.0|64.0) MB"):
        read_document(tmp_path / name)


def test_a_long_text_is_cut_and_that_is_said(file: Path) -> None:
    file.write_text("ab\n" * 1_000_000)
    read = read_document(file)
    assert read.text == ("ab\n" * 1_000_000)[:MOST_CHARACTERS]
    assert read.notes == ("Only the first 2,000,000 of 3,000,000 characters were taken",)


def test_a_name_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\x1b[31m\n\xff.txt"))
    path.write_text("text")
    assert read_document(path).name == "\\x1b[31m\\x0a\ufffd.txt"
    path.write_text("\0")
    with pytest.raises(FormatError) as caught:
        read_document(path)
    assert caught.value.message.isprintable()


def test_the_parser_is_not_loaded_here() -> None:
    program = "import sys, phi4local.documents, phi4local.mentions; print('pypdf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"False\n"


def test_how_the_model_is_shown_files() -> None:
    given = [Attachment("a.py", 5, 3, "x = 1\n"), Attachment("b\n`.md", 3, 3, "````sh\nls\n````")]
    assert as_prompt("Why?", given) == (
        "File: a.py\n```\nx = 1\n```\n\nFile: b\\x0a`.md\n`````\n````sh\nls\n````\n`````\n\nWhy?"
    )
    assert as_prompt("Why?", []) == "Why?"


@given(st.lists(st.tuples(st.text(min_size=1), st.text(st.sampled_from("`~ab \n>-#\t"), max_size=30)), max_size=3))
def test_no_file_ends_its_fence(files: list[tuple[str, str]]) -> None:
    """A CommonMark parser sees each file as one block of code, and the user's text after them."""
    prompt = as_prompt("The question", [Document(name, 0, text) for name, text in files])
    tokens = MarkdownIt().parse(prompt)
    blocks = [token.content for token in tokens if token.type == "fence"]
    assert blocks == [text if text.endswith("\n") else text + "\n" for _, text in files]
    assert tokens[-2].content == "The question"
