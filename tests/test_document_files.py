"""The text of a document's file, whatever its kind, and what is said of one that has none."""

from __future__ import annotations

import io
from pathlib import Path

import docx
import pytest

from comps import document_files
from comps.document_files import UnreadableDocument, read_apart, text_of_file

HTML = """<html><head><title>T</title><style>p {}</style></head><body><h1>Gaudi&nbsp;2</h1><script>bad()</script>
<p>It has <b>96</b> GB.<br>Of HBM2E.</p><table><tr><th>year</th><td>2022</td></tr></table></body></html>"""


def pdf(text: str) -> bytes:
    """A file with one page."""
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    )
    file, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % len(file)
    return file + b"xref\n0 6\n0000000000 65535 f \n" + table + end


def word_document() -> bytes:
    document, file = docx.Document(), io.BytesIO()
    document.add_paragraph("Gaudi 2")
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "memory", "96 GB"
    document.add_paragraph("The end.")
    document.save(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", b"\xef\xbb\xbfGaudi \xc3\xbc\n", "Gaudi ü\n"),
        ("a.MD", b"# Gaudi", "# Gaudi"),
        ("notes", b"no extension", "no extension"),
        ("a.html", HTML.encode(), "Gaudi\xa02\n\nIt has 96 GB.\nOf HBM2E.\nyear\t2022"),
        ("a.pdf", pdf("Gaudi 2 has 96 GB."), "Gaudi 2 has 96 GB."),
        ("a.docx", word_document(), "Gaudi 2\nmemory\t96 GB\nThe end."),
    ],
)
def test_the_text_is_read_by_the_kind_of_the_file(name: str, content: bytes, text: str) -> None:
    assert text_of_file(name, content) == text


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", b"caf\xe9", "it is not UTF-8 text"),
        ("a.txt", b"\0\1", "it is not text"),
        ("a.txt", b" \n", "it has no text"),
        ("a.pdf", pdf(""), "it has no text; it may be scanned pages"),
        ("a.pdf", b"Gaudi", r"it is no PDF file that can be read \(\w+\)"),
        ("a.docx", b"Gaudi", r"it is no DOCX file that can be read \(\w+\)"),
        ("a.html", b"<script>x</script>", "it has no text"),
    ],
)
def test_a_file_without_text_says_why_and_nothing_else_is_said(
    name: str, content: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnreadableDocument, match=f"^{why}$"):
        text_of_file(name, content)
    assert caplog.text == ""


async def test_a_file_is_read_in_a_process_of_its_own() -> None:
    assert await read_apart("a.docx", word_document()) == "Gaudi 2\nmemory\t96 GB\nThe end."
    with pytest.raises(UnreadableDocument, match="it is not UTF-8 text"):
        await read_apart("a.txt", b"caf\xe9")


@pytest.mark.parametrize(
    ("limit", "most", "why"), [("_SECONDS", 0.01, "more than"), ("_MEMORY", 10**8, "too much memory")]
)
async def test_a_file_that_takes_too_long_or_too_much_memory_is_given_up(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: float, why: str
) -> None:
    monkeypatch.setattr(document_files, limit, most)
    with pytest.raises(UnreadableDocument, match=f"it takes {why}"):
        await read_apart("a.txt", b"x" * 10**8)


def test_every_kind_is_one_that_the_page_lets_people_choose() -> None:
    page = (Path(document_files.__file__).parent / "ui" / "static" / "index.html").read_text("utf-8")
    assert f'accept="{",".join(document_files.KINDS)},' in page
