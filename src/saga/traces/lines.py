"""The lines of a trace file, one after another: what is read is not held."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from saga.traces.base import Line, ReadLog, TraceError

MAX_DOCUMENT_BYTES = 256 << 20
"""The largest JSON document over many lines that is read."""

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


def read_lines(
    path: Path, log: ReadLog, max_document_bytes: int = MAX_DOCUMENT_BYTES
) -> Iterator[Line]:
    """The lines that are not blank; gzip is unpacked, of a damaged file up to the damage.

    A file that is one JSON document over many lines is one line, unless it is too large. Raises
    TraceError naming the file if it cannot be read.
    """
    lines = _lines(path, log)
    first = next(lines, None)
    if first is None:
        return
    if first.text.startswith(b"{") and first.text.endswith((b"{", b"[", b",")):
        yield from _document(first, lines, max_document_bytes)
    else:
        yield first
    yield from lines


def _document(first: Line, lines: Iterator[Line], max_bytes: int) -> Iterator[Line]:
    """The whole document, if there is no more than that; else the lines that it was taken for."""
    held, num_bytes = [first], len(first.text)
    for line in lines:
        held.append(line)
        num_bytes += len(line.text)
        if num_bytes > max_bytes:
            break
    whole = b"\n".join(line.text for line in held)
    try:
        msgspec.json.decode(whole, type=msgspec.Raw)
    except (ValueError, RecursionError):
        yield from held
    else:
        yield Line(first.number, whole)


def _lines(path: Path, log: ReadLog) -> Iterator[Line]:
    number = 0
    try:
        with ExitStack() as stack:
            for number, text in enumerate(_opened(path, stack), 1):
                text = (text.removeprefix(_BOM) if number == 1 else text).strip()
                if text:
                    yield Line(number, text)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        log.problem(number + 1, f"the gzip data is damaged from here on: {error}")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error


def _opened(path: Path, stack: ExitStack) -> BinaryIO:
    file = stack.enter_context(path.open("rb"))
    if not file.peek(2).startswith(_GZIP):
        return file
    return cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=file)))
