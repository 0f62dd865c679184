"""Records of files: JSON lines, a JSON array, CSV, Parquet or Arrow, compressed or not, told apart by content."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from winnow.data.rejects import BadRow

ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".arrow")
"""What is read of a folder; each also with ``.gz``, ``.zst``, ``.bz2`` or ``.xz`` behind it."""
PACKED = (".gz", ".zst", ".bz2", ".xz")
UTF16 = (b"\xff\xfe", b"\xfe\xff")
BROKEN = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid, OSError)


@dataclass(frozen=True)
class Record:
    """One row of a file, or what is wrong with it.

    Args:
        number: line or row, from 1; where a file breaks off, the last one read.
        where: file and line, for messages.
        fields: the row's fields; None where it has a fault.
        fault: what is wrong with it; None where nothing is.
    """

    number: int
    where: str
    fields: dict[str, Any] | None = None
    fault: BadRow | None = None


def expand(paths: str | Sequence[str], key: str) -> list[str]:
    """Files that a path, a pattern, a folder or a list of these stands for.

    Args:
        paths: relative to the folder the program was started in; a folder stands for the data files in and below it.
        key: the config key, for messages.

    Returns:
        Files, a pattern's and a folder's in the order of their names.

    Raises:
        FileNotFoundError: there is no such file, or a pattern or folder gives none.
        ValueError: a folder was written by ``save_to_disk``, which ``data=hub`` reads.
    """
    found: list[str] = []
    for given in [paths] if isinstance(paths, str) else list(paths):
        path = Path(given).expanduser()
        if path.is_file():
            found.append(str(path))
        elif path.is_dir():
            if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
                raise ValueError(f"{key}={given} was written by save_to_disk: read it with data=hub {key}.path={given}")
            inside = sorted(str(one) for one in path.rglob("*") if one.is_file() and _is_data(one))
            if not inside:
                raise FileNotFoundError(f"{key}={given}: no file in this folder ends in {', '.join(ENDINGS)}")
            found += inside
        elif has_magic(given):
            matching = sorted(one for one in glob(str(path), recursive=True) if Path(one).is_file())
            if not matching:
                raise FileNotFoundError(f"{key}={given}: no file matches")
            found += matching
        else:
            raise FileNotFoundError(f"{key}: no file {path.absolute()}")
    return found


def _is_data(path: Path) -> bool:
    name = path.name.removesuffix(path.suffix) if path.suffix in PACKED else path.name
    return name.endswith(ENDINGS) and not name.startswith(".")


def read_records(path: str) -> Iterator[Record]:
    """Rows of a file, each with its place; blank lines are passed over.

    A row that cannot be read is given as a fault, and reading goes on behind it; a file that breaks off ends with one.

    Args:
        path: the file. Compression and format go by what is in it; CSV and TSV by the ending, since they have no mark.

    Yields:
        The rows.
    """
    number, unit = 0, "line"
    try:
        with closing(_opened(path)) as file:
            head = file.peek(512)[:512]
            reader, unit = _reader(path, head)
            for number, value in reader(file):
                where = f"{path}, {unit} {number}"
                if isinstance(value, BadRow):
                    yield Record(number, where, fault=value)
                else:
                    yield Record(number, where, value)
    except UnicodeDecodeError as error:
        yield Record(number, f"{path}, after {unit} {number}", fault=BadRow("not UTF-8 text", error.reason))
    except BROKEN as error:
        what = "not a whole file" if number else "not a file that can be read"
        yield Record(number, f"{path}, after {unit} {number}", fault=BadRow(what, _first_line(error)))


def read_json_lines(path: str | Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file with their numbers, the first fault raised.

    Args:
        path: the file; relative to the folder the program was started in.
        key: the config key that names it, for messages.

    Yields:
        Line number, from 1, and object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object, or the file is not UTF-8 text or breaks off.
    """
    for file in expand(str(path), key):
        for record in read_records(file):
            if record.fields is None:
                raise ValueError(f"{record.where}: {record.fault} ({key})")
            yield record.number, record.fields


def check_text(text: str, name: str) -> None:
    """Refuse what no tokenizer and no file takes: half of a surrogate pair, which JSON can spell.

    Args:
        text: the text.
        name: what it is of the record, for messages.

    Raises:
        BadRow: there is one; names the place in the text.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!a} at character {error.start}"
        raise BadRow(f"the {name} holds half of a surrogate pair, which is no text", half) from None


def _opened(path: str) -> io.BufferedReader:
    """The file's bytes, decompressed."""
    with open(path, "rb") as file:
        head = file.read(6)
    opened: Any  # read_records closes it
    if head.startswith(b"\x1f\x8b"):
        opened = gzip.open(path, "rb")  # noqa: SIM115
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        opened = pa.CompressedInputStream(pa.OSFile(path), "zstd")
    elif head.startswith(b"BZh"):
        opened = bz2.open(path, "rb")  # noqa: SIM115
    elif head.startswith(b"\xfd7zXZ\x00"):
        opened = lzma.open(path, "rb")  # noqa: SIM115
    else:
        return open(path, "rb")
    return io.BufferedReader(cast("io.RawIOBase", opened), 1 << 20)


Values = Iterator[tuple[int, "dict[str, Any] | BadRow"]]


def _reader(path: str, head: bytes) -> tuple[Callable[[io.BufferedReader], Values], str]:
    """How a file is read, by its first bytes, and what its rows are called."""
    name = path.removesuffix(Path(path).suffix) if path.endswith(PACKED) else path
    if head.startswith(b"PAR1"):
        return _parquet, "row"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return (_arrow_file if head.startswith(b"ARROW1") else _arrow_stream), "row"
    if head.startswith(UTF16):
        return _refused("the file is UTF-16: convert it to UTF-8"), "line"
    if head.startswith(b"PK\x03\x04"):
        return _refused("the file is a zip archive: unpack it"), "line"
    if name.endswith((".csv", ".tsv")):
        return lambda file: _csv(file, "\t" if name.endswith(".tsv") else ","), "line"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        return (_lines, "line") if name.endswith((".jsonl", ".ndjson")) and not _one_value(path) else (_array, "item")
    return _lines, "line"


def _one_value(path: str) -> bool:
    """Whether a file is one JSON value, whatever it is called."""
    with closing(_opened(path)) as file:
        try:
            json.loads(file.read().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return False
    return True


def _refused(reason: str) -> Callable[[io.BufferedReader], Values]:
    return lambda file: iter([(0, BadRow(reason))])


def _lines(file: io.BufferedReader) -> Values:
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield number, BadRow("not UTF-8 text", f"{error.reason} at byte {error.start}")
            continue
        if text.strip():
            yield number, _parsed(text)


def _array(file: io.BufferedReader) -> Values:
    text = file.read().decode("utf-8-sig")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f"line {error.lineno}, {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)[:80]
        yield 0, BadRow("not a JSON array", place)
        return
    for number, value in enumerate(values, 1):
        yield number, value if isinstance(value, dict) else _no_object(value)


def _parsed(text: str) -> dict[str, Any] | BadRow:
    try:
        value = json.loads(text)
    except RecursionError:
        return BadRow("JSON nested too deep to be a record")
    except json.JSONDecodeError as error:
        return BadRow("not JSON", f"{error.msg} at column {error.colno}")
    except ValueError as error:  # a number of thousands of digits
        return BadRow("not JSON", str(error).split(";")[0])
    return value if isinstance(value, dict) else _no_object(value)


def _no_object(value: Any) -> BadRow:
    return BadRow("one JSON object per line is needed", f"got {type(value).__name__}")


def _csv(file: io.BufferedReader, delimiter: str) -> Values:
    csv.field_size_limit(1 << 30)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header) or not all(header):
            yield 1, BadRow("the first line of a CSV file must name its columns", f"got {header!r:.100}")
            return
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                yield (
                    reader.line_num,
                    BadRow("a row of another length than the header", f"{len(cells)} of {len(header)}"),
                )
                continue
            yield reader.line_num, {name: cell for name, cell in zip(header, cells, strict=True) if cell}
    except csv.Error as error:
        yield reader.line_num, BadRow("not CSV", str(error))
    finally:
        text.detach()


def _parquet(file: io.BufferedReader) -> Values:
    source: Any = file if file.seekable() else pa.BufferReader(file.read())
    number = 0
    for batch in pyarrow.parquet.ParquetFile(source).iter_batches(1000):
        for value in batch.to_pylist():
            number += 1
            yield number, value


def _arrow_file(file: io.BufferedReader) -> Values:
    reader = pa.ipc.open_file(cast("Any", file) if file.seekable() else pa.BufferReader(file.read()))
    return _numbered(reader.get_batch(at) for at in range(reader.num_record_batches))


def _arrow_stream(file: io.BufferedReader) -> Values:
    return _numbered(pa.ipc.open_stream(cast("Any", file)))


def _numbered(batches: Any) -> Values:
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield number, value


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
