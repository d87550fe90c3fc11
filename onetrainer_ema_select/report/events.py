"""Reads the scalars of TensorBoard's event files, with the standard library alone.

An event file is a series of records (TensorFlow's TFRecord): the length in 8 bytes, a checksum of 4, the content,
a checksum of 4. The content is a protocol buffer `Event`: field 2 is the step, field 5 a `Summary`, whose fields 1
are values with a tag (1) and a number (2). TensorBoard's own reader does the same, and takes seconds to be imported.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

Points = list[tuple[int, float]]

# Text and pictures lie in records of their own, which are stepped over. A record of scalars is far smaller.
_LARGEST = 1 << 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_scalars(file: Path, wanted: Callable[[str], bool]) -> dict[str, Points]:
    """The scalars of one file by tag, each a list of step and value in the file's order.

    Args:
        file: An event file; one that is cut short gives what can be read of it.
        wanted: Tells which tags to keep.

    Raises:
        OSError: If it cannot be read.
    """
    found: dict[str, Points] = {}
    keep: dict[bytes, str] = {}
    for record in _records(file):
        try:
            _add(record, found, keep, wanted)
        except (ValueError, IndexError, struct.error):
            break  # damaged: what comes after it cannot be trusted
    return found


def _add(record: bytes, found: dict[str, Points], keep: dict[bytes, str], wanted: Callable[[str], bool]) -> None:
    step, summaries = 0, []
    for number, value in _fields(record):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for number, entry in _fields(summary):
            if number != 1 or not isinstance(entry, bytes):
                continue
            tag, scalar = b"", None
            for part, value in _fields(entry):
                if part == 1 and isinstance(value, bytes):
                    tag = value
                elif part == 2 and isinstance(value, bytes) and len(value) == 4:
                    scalar = struct.unpack("<f", value)[0]
            if scalar is None or not math.isfinite(scalar):
                continue
            if tag not in keep:
                name = tag.decode("utf-8", "replace")
                keep[tag] = name if wanted(name) else ""
            if keep[tag]:
                found.setdefault(keep[tag], []).append((step, scalar))


def _records(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while len(head := source.read(12)) == 12:
            length = int.from_bytes(head[:8], "little")
            if length > 1 << 40:
                return
            if length > _LARGEST:
                source.seek(length + 4, 1)
                continue
            body = source.read(length + 4)
            if len(body) < length + 4:
                return
            yield body[:length]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer's message: the number, and an integer or the bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, place = _varint(data, place)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of the kind {kind}")
        if place + length > len(data):
            raise ValueError("a field that is cut short")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number that is too long")
