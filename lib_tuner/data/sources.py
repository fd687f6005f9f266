"""Where captions and pictures come from besides picture files: caption files, imagefolder lists (.jsonl, .csv), parquet data sets.

`complain(path, text, kind)` receives what is wrong but does not stop the scan.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .file_names import Names
from .item import Item

Complain = Callable[[Path, str, str], None]

LISTS = ("metadata.jsonl", "metadata.csv")
_CAPTION_COLUMNS = ("text", "caption", "captions", "prompt")
TOGETHER = 16  # rows of a parquet file read at a time
_IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")


def read_text(path: Path, complain: Complain) -> str:
    """A text file's content with line breaks as \\n: UTF-8, UTF-16, or with a complaint Windows-1252; a byte order mark is left out.

    Of a file that cannot be read nothing, with a complaint.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        complain(path, f"cannot be read ({error.strerror})", "unreadable")
        return ""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
            if b"\0" not in data:
                complain(path, "is not UTF-8 and was read as Windows-1252; save it as UTF-8 if letters look wrong", "encoding")
    if "\0" in text:
        complain(path, "holds NUL characters, as UTF-16 without a byte order mark does; save it as UTF-8", "encoding")
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def listed_captions(path: Path, complain: Complain, lines: bool = False) -> dict[Path, str]:
    """Captions of an imagefolder list by picture path: its column file_name, and text, caption or prompt; names are relative to the list.

    Of several captions of one picture, see `_caption`; `lines` are asked for where a line of them is drawn.
    """
    text, names = read_text(path, complain), Names()
    rows = _json_rows(path, text, complain) if path.suffix == ".jsonl" else _csv_rows(path, text, complain)
    captions = {}
    for line, row in rows:
        name, column = row.get("file_name"), next((c for c in _CAPTION_COLUMNS if row.get(c) is not None), None)
        if not isinstance(name, str) or column is None:
            complain(path, f"line {line} needs file_name and one of {', '.join(_CAPTION_COLUMNS)}; it was left out", "list")
            continue
        caption, fine = _caption(row[column], lines)
        if not fine:
            complain(path, f"line {line} has a caption that is no text{'' if caption else '; it was left out'}", "list")
        if not fine and not caption:
            continue
        picture = _picture(path.parent, name, names)
        if not os.path.isfile(picture):
            complain(path, f"line {line} names {name!r}, which is not there", "list")
        if picture not in captions:
            captions[picture] = caption
        elif lines:  # a row for each caption is a list of them
            captions[picture] += f"\n{caption}"
    return captions


def _picture(folder: Path, name: str, names: Names) -> Path:
    """The picture that a list names, also with the slashes of Windows or in other letters than the disk has; as named where there is none."""
    ways = [Path(os.path.normpath(folder / way)) for way in dict.fromkeys((name, name.replace("\\", "/")))]
    return next((found for way in ways if (found := names.like(way))), ways[0])


def _caption(value: Any, lines: bool) -> tuple[str, bool]:
    """The caption in a cell, and whether all in it is text or nothing.

    Of a list of captions the first that is not empty, as diffusers' examples take it where nothing is random; with `lines` all, each as a line.
    """
    several = value if isinstance(value, list) else [value]
    texts = [text.strip() for text in several if isinstance(text, str) and text.strip()]
    return "\n".join(texts if lines else texts[:1]), all(text is None or isinstance(text, str) for text in several)


def _csv_rows(path: Path, text: str, complain: Complain) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by the names in the first one. A row with more columns has most likely a caption with commas and no quotes around it, which is whole again where it comes last."""
    rows, told = _csv_cells(path, text, complain), False
    _, names = next(rows, (0, []))
    bare = names[:]
    while len(bare) > 1 and not bare[-1]:
        bare.pop()
    names = bare if bare and bare[-1] in _CAPTION_COLUMNS else names  # a comma at its end would be a column that takes the rest of a caption
    caption = next((c for c in _CAPTION_COLUMNS if c in names), "")
    for line, cells in rows:
        while len(cells) > len(names) and not cells[-1]:  # a comma at the end
            cells.pop()
        if len(cells) > len(names) and names[-1] != caption:
            complain(path, f"line {line} has more columns than the first line; it was left out: put quotes around a caption with commas", "list")
            continue
        if len(cells) > len(names) and not told:  # most likely it is so in every row
            told = True
            complain(path, f"line {line} has more columns than the first line, which were taken for the rest of its caption: put quotes around a caption with commas", "list")
        yield line, dict(zip(names, [*cells[: len(names) - 1], ", ".join(cells[len(names) - 1 :])] if len(cells) > len(names) else cells))


def _csv_cells(path: Path, text: str, complain: Complain) -> Iterator[tuple[int, list[str]]]:
    """The line at which each row begins, and its cells; a row whose quote is never closed costs its first line alone, not those that it would swallow."""
    lines, at = text.replace("\0", "").split("\n"), 0  # `read_text` has said it; Python 3.10 refuses them
    if text.count("\0") > len(text) // 4:  # UTF-16 that does not say so: no text
        return
    while at < len(lines):
        reader = csv.reader((f"{lines[i]}\n" for i in range(at, len(lines))), strict=True, skipinitialspace=True)  # as people write them: a.png, "a cat, sitting"
        begin = at
        try:
            for cells in reader:
                if cells:
                    yield begin + 1, cells
                begin = at + reader.line_num
            return
        except csv.Error:  # also a field of over 128 KiB
            if cells := _whole_line(lines[begin]):
                complain(path, f"line {begin + 1} has words behind a quote that is closed; its quotes were left out: put quotes around the whole caption, and write those inside it twice", "list")
                yield begin + 1, cells
            else:
                complain(path, f"line {begin + 1} has a quote that is never closed; it was left out: put quotes around the whole caption, and write those inside it twice", "list")
            at = begin + 1


def _whole_line(line: str) -> list[str]:
    """The cells of a row that the strict way to read refuses, as `"Hello" on a sign`, where each of its quotes is closed in the same line; nothing where one is not."""
    try:
        return next(csv.reader([line], skipinitialspace=True), []) if line.count('"') % 2 == 0 else []
    except csv.Error:  # a field of over 128 KiB
        return []


def _json_rows(path: Path, text: str, complain: Complain) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, part in enumerate(text.split("\n"), start=1):
        if not part.strip():
            continue
        try:
            row = json.loads(part)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits, and brackets in brackets
            complain(path, f"line {line} is no JSON ({getattr(error, 'msg', 'it is too long')}); it was left out", "list")
            continue
        yield line, row if isinstance(row, dict) else {}


# ---- parquet ---------------------------------------------------------------------------------------------------------


def parquet_rows(path: Path, complain: Complain, lines: bool = False) -> Iterator[tuple[int, bytes, str, str]]:
    """(row, picture bytes, picture name, caption) of every row of an image-text data set; few rows are in memory at a time.

    The picture column is a struct {bytes, path} as `datasets` writes it, or plain bytes; captions as in `listed_captions`. Raises ValueError for a file that has no such columns,
    cannot be read, or where pyarrow is missing.
    """
    file = _open_parquet(path)
    names = file.schema_arrow.names
    picture = next((c for c in _IMAGE_COLUMNS if c in names), None)
    caption = next((c for c in _CAPTION_COLUMNS if c in names), None)
    if picture is None:
        raise ValueError(f"has no column of pictures ({', '.join(_IMAGE_COLUMNS)}), only {', '.join(names)}")
    row, told = 0, False
    for batch in file.iter_batches(batch_size=TOGETHER, columns=[picture, *([caption] if caption else [])]):
        for values in batch.to_pylist():
            data, name = _cell(values[picture])
            if name and not data:
                complain(path, f"row {row} names {name} but does not hold it; put the picture itself into the file", "unreadable")
                row += 1
                continue
            text, fine = _caption(values.get(caption), lines)
            if not fine and not told:  # most likely it is so in every row
                told = True
                complain(path, f"row {row} has a caption that is no text; such captions are left out", "list")
            yield row, data, name, text
            row += 1


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("needs the package pyarrow to be read; install it with: pip install pyarrow") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"is no parquet file that can be read ({str(error).splitlines()[0]})") from error


def _cell(value: Any) -> tuple[bytes, str]:
    if isinstance(value, dict):
        return value.get("bytes") or b"", Path(value.get("path") or "").name
    return (value or b""), ""


class Reader:
    """Bytes of an item's picture and mask; holds one row group of one parquet file, since rows are read in order."""

    def __init__(self) -> None:
        self._group: tuple[Path, int, list[bytes]] | None = None

    def picture(self, item: Item) -> bytes:
        """The file's bytes. Raises ValueError where they are not those that were scanned: a run never trains on other pictures than it lists."""
        try:
            data = item.path.read_bytes() if item.row < 0 else self._parquet_row(item)
        except FileNotFoundError:
            raise ValueError(f"{item.path}: the picture is gone; put it back, or start a new run.") from None
        return _checked(item.path, data, item.digest)

    def mask(self, item: Item) -> bytes | None:
        """The mask file's bytes, checked in the same way; None without one."""
        if item.mask is None:
            return None
        try:
            return _checked(item.mask, item.mask.read_bytes(), item.mask_digest)
        except FileNotFoundError:
            raise ValueError(f"{item.mask}: the mask is gone; put it back, or start a new run.") from None

    def hint(self, item: Item) -> bytes:
        """The hint file's bytes, checked in the same way."""
        try:
            return _checked(item.hint, item.hint.read_bytes(), item.hint_digest)
        except FileNotFoundError:
            raise ValueError(f"{item.hint}: the hint is gone; put it back, or start a new run.") from None

    def _parquet_row(self, item: Item) -> bytes:
        held = self._group
        if held is None or held[0] != item.path or not held[1] <= item.row < held[1] + len(held[2]):
            held = self._group = _row_group(item.path, item.row)
        return held[2][item.row - held[1]]


def _row_group(path: Path, row: int) -> tuple[Path, int, list[bytes]]:
    """The pictures of the row group that holds a row, and its first row."""
    file, start = _open_parquet(path), 0
    column = next(c for c in _IMAGE_COLUMNS if c in file.schema_arrow.names)
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if row < start + count:
            batches = file.iter_batches(batch_size=TOGETHER, row_groups=[group], columns=[column])  # at once, a group of over 2 GB cannot be read
            return path, start, [_cell(value)[0] for batch in batches for value in batch.column(0).to_pylist()]
        start += count
    raise ValueError(f"{path}: row {row} is gone; put the file back, or start a new run.")


def digest(data: bytes) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _checked(path: Path, data: bytes, expected: str) -> bytes:
    if digest(data) != expected:
        raise ValueError(f"{path}: the file changed after the run had begun; put the old one back, or start a new run.")
    return data
