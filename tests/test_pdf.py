"""PDFs that are attached to a message: whole, damaged and hostile ones, read by a process that may fail."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject, StreamObject

from phi4local.documents import Document, read_document
from phi4local.errors import FormatError, Phi4LocalError
from phi4local.pdf import answer_to

FONT = DictionaryObject(
    {
        NameObject("/Type"): NameObject("/Font"),
        NameObject("/Subtype"): NameObject("/Type1"),
        NameObject("/BaseFont"): NameObject("/Helvetica"),
    }
)


def line(text: str, y: int = 700) -> bytes:
    return f"BT /F1 12 Tf 72 {y} Td ({text}) Tj ET\n".encode()


def written(contents: Sequence[bytes | StreamObject], change: Callable[[PdfWriter], object] | None = None) -> bytes:
    """A PDF whose pages have these content streams."""
    writer = PdfWriter()
    for content in contents:
        page = writer.add_blank_page(612, 792)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): FONT})}
        )
        if isinstance(content, bytes):
            stream = DecodedStreamObject()
            stream.set_data(content)
            content = stream
        page[NameObject("/Contents")] = writer._add_object(content)
    if change:
        change(writer)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def raw(*objects: bytes, trailer: bytes = b"") -> bytes:
    """A PDF of these objects, numbered from 1 on; the first is the catalog."""
    out, offsets = bytearray(b"%PDF-1.7\n"), []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<</Size %d /Root 1 0 R %s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, start)
    return bytes(out)


def stream(data: bytes, entries: bytes = b"") -> bytes:
    return b"<</Length %d %s>>\nstream\n%s\nendstream" % (len(data), entries, data)


CATALOG = b"<</Type /Catalog /Pages 2 0 R>>"
PAGES = b"<</Type /Pages /Kids [3 0 R] /Count 1>>"
PAGE = (
    b"<</Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources "
    b"<</Font <</F1 <</Type /Font /Subtype /Type1 /BaseFont /Helvetica>>>> /XObject <</X 5 0 R>>>>>>"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "paper.pdf"


def test_the_text_of_all_pages(file: Path, tmp_path: Path) -> None:
    data = written([line("First page") + line("goes on", 680), b"", line("Third \\001page")])
    file.write_bytes(data)
    expected = "First page\ngoes on\n\nThird \ufffdpage"
    assert read_document(file) == Document("paper.pdf", len(data), expected, pages=3)
    (tmp_path / "paper").write_bytes(data)
    assert read_document(tmp_path / "paper").text == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (written([b"", b"0 0 m 9 9 l S"]), "no text that can be read: its pages may be pictures"),
        (written([line("x")], lambda pdf: pdf.encrypt("secret", algorithm="RC4-128")), "is encrypted"),
        (b"%PDF-1.7\n" + random.Random(4).randbytes(5000), "is damaged, or no PDF"),
        (b"This is a text", "is damaged, or no PDF"),
        (written([]), "is damaged, or no PDF"),
    ],
    ids=["scan", "encrypted", "garbage", "text", "no page"],
)
def test_each_trouble_is_told(file: Path, data: bytes, message: str) -> None:
    file.write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        read_document(file)
    assert caught.value.hint


def test_a_pdf_that_only_its_owner_may_change_is_read(file: Path) -> None:
    file.write_bytes(written([line("Open")], lambda pdf: pdf.encrypt("", "owner", algorithm="RC4-128")))
    assert read_document(file).text == "Open"


def test_a_cipher_that_cannot_be_read_is_encryption(file: Path) -> None:
    """AES without a password; only the `cryptography` package could read it."""
    crypt = b"<</Filter /Standard /V 5 /R 6 /Length 256 /P -4 /U <%s> /O <%s> /UE <%s> /OE <%s> /Perms <%s> %s>>"
    filters = b"/CF <</StdCF <</CFM /AESV3 /Length 32>>>> /StmF /StdCF /StrF /StdCF"
    values = (b"00" * 48, b"00" * 48, b"00" * 32, b"00" * 32, b"00" * 16, filters)
    file.write_bytes(
        raw(CATALOG, PAGES, PAGE, stream(line("x")), crypt % values, trailer=b"/Encrypt 5 0 R /ID [<00><00>]")
    )
    with pytest.raises(FormatError, match="is encrypted"):
        read_document(file)


def test_damage_is_read_or_refused(file: Path) -> None:
    """Cut and changed at places all over the file: in the child at some, and at many in its parser."""
    data = written([line("One page"), line("Another")])
    rng = random.Random(4)
    for round_ in range(200):
        where = rng.randrange(len(data))
        flipped = data[:where] + bytes([data[where] ^ (1 << rng.randrange(8))]) + data[where + 1 :]
        damaged = data[:where] if round_ % 2 else flipped
        answer = answer_to(damaged, 1000, time.monotonic() + 5)
        assert "problem" in answer or len(answer["text"]) <= 1000
        if round_ % 50 > 1:
            continue
        file.write_bytes(damaged or b"%PDF-")
        try:
            assert read_document(file).text.strip()
        except FormatError as error:
            assert re.search("damaged|no text|encrypted|not a text", error.message)


def bomb() -> StreamObject:
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(b" " * 10_000_000) for _ in range(20)) + packer.flush()
    content = StreamObject()
    content._data = data
    content[NameObject("/Filter")] = NameObject("/FlateDecode")
    return content


def test_a_bomb_costs_only_its_page(file: Path) -> None:
    file.write_bytes(written([line("Before"), bomb(), line("After")]))
    read = read_document(file)
    assert (read.text, read.pages, read.notes) == ("Before\n\nAfter", 3, ("1 of 3 pages could not be read",))


X_FORM = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources <</XObject <</X 5 0 R>>>>"
HOSTILE = {
    "a count of pages": raw(CATALOG, PAGES.replace(b"1>>", b"2147483647>>"), PAGE, stream(line("Fine"))),
    "a tree of pages in a circle": raw(CATALOG, PAGES.replace(b"3 0", b"2 0"), PAGE, stream(b"")),
    "a form that draws itself": raw(
        CATALOG, PAGES, PAGE, stream(line("Fine") + b"/X Do"), stream(b"/X Do " * 9, X_FORM)
    ),
    "nested arrays": raw(CATALOG, PAGES, PAGE, stream(b"[" * 100_000)),
    "nested dictionaries": raw(CATALOG, PAGES, b"<</A" * 50_000),
    "an object that is itself": raw(CATALOG, b"2 0 R"),
    "an earlier table that is this one": raw(CATALOG, PAGES, PAGE, stream(line("Fine")), trailer=b"/Prev 0"),
    "a length": raw(CATALOG, PAGES, PAGE, stream(line("Fine")).replace(b"/Length ", b"/Length 99999999999")),
    "many operators": raw(CATALOG, PAGES, PAGE, stream(b"q " * 1_500_000 + line("Fine"))),
    "many filters": raw(CATALOG, PAGES, PAGE, stream(b"x", b"/Filter [" + b"/FlateDecode " * 50_000 + b"]")),
    "another program": raw(CATALOG, PAGES, PAGE, stream(b"x", b"/Filter /JBIG2Decode")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_read_or_refused_in_time(file: Path, name: str) -> None:
    file.write_bytes(HOSTILE[name])
    start = time.monotonic()
    try:
        assert "Fine" in read_document(file, seconds=2).text
    except Phi4LocalError as error:
        assert "paper.pdf" in error.message
    assert time.monotonic() - start < 10


def test_a_time_limit_gives_the_pages_until_then() -> None:
    answer = answer_to(written([line("First"), line("Second")]), 1000, until=time.monotonic())
    assert answer == {"text": "First", "pages": 2, "taken": 1, "failed": 0, "cut": False}


def test_a_reader_that_takes_too_long_is_ended(file: Path) -> None:
    file.write_bytes(written([line("Fine")]))
    with pytest.raises(FormatError, match="takes too long"):
        read_document(file, seconds=0.01)


def test_a_long_text_is_cut_and_that_is_said() -> None:
    data = written([line("a" * 60)] * 3)
    until = time.monotonic() + 60
    assert answer_to(data, 100, until) == {
        "text": "a" * 60 + "\n\n" + "a" * 38,
        "pages": 3,
        "taken": 2,
        "failed": 0,
        "cut": True,
    }
    assert len(answer_to(data, 184, until)["text"]) == 184
    assert not answer_to(data, 184, until)["cut"]


def test_a_reader_that_fails_is_an_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(written([line("Fine")]))
    for program in ("/bin/false", "/nowhere/python"):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(FormatError, match="the program that reads PDFs failed"):
            read_document(file)


def test_no_module_of_the_current_folder_is_run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pypdf", "json", "phi4local", "pdf"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('wrong module')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    file.write_bytes(written([line("Fine")]))
    assert read_document(Path("paper.pdf")).text == "Fine"


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not bound a process's memory")
def test_memory_is_bounded() -> None:
    program = """if True:
        import pypdf, phi4local.pdf
        pypdf.PdfReader = lambda file: bytearray(1 << 30)
        phi4local.pdf.main(1000, 1000, 10.0)
    """
    child = subprocess.run([sys.executable, "-c", program], input=b"%PDF-", capture_output=True, check=True)
    assert json.loads(child.stdout) == {"problem": "memory"}


def test_the_pdfs_of_these_tests_are_what_they_seem() -> None:
    assert len(PdfReader(io.BytesIO(written([bomb()]))).pages) == 1
    assert PdfReader(io.BytesIO(raw(CATALOG, PAGES, PAGE, stream(line("Fine"))))).pages[0].extract_text() == "Fine"
