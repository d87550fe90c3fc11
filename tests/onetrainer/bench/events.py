"""Reads the scalars out of TensorBoard's event files, without TensorBoard.

A file is a row of records: the length (8 bytes), a checksum of it (4), the data, and a checksum of them (4). The
data are a protocol buffer: of an event, field 2 is the step and field 5 the summary; of a summary, field 1 is a
value; of a value, field 1 is the tag and field 2 the number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

Curves = dict[str, list[tuple[int, float]]]


def read_curves(folder: Path) -> Curves:
    """The scalars of one run by tag, as step and value; of the event files directly in its folder."""
    found: Curves = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in records(file.read_bytes()):
            fields = list(protobuf(event))
            step = next((value for number, value in fields if number == 2 and isinstance(value, int)), 0)
            for summary in (value for number, value in fields if number == 5 and isinstance(value, bytes)):
                for value in (inner for number, inner in protobuf(summary) if number == 1 and isinstance(inner, bytes)):
                    parts = dict(protobuf(value))
                    tag, number = parts.get(1), parts.get(2)
                    if isinstance(tag, bytes) and isinstance(number, float):
                        found.setdefault(tag.decode(), []).append((step, number))
    return found


def records(data: bytes) -> Iterator[bytes]:
    """The records of a file."""
    place = 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield data[place + 12 : place + 12 + length]
        place += 16 + length


def protobuf(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Number and value of each field: whole numbers, bytes, and numbers of 4 and 8 bytes as floating point."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = varint()
        match key & 7:
            case 0:
                yield key >> 3, varint()
            case 2:
                length = varint()
                yield key >> 3, data[place : place + length]
                place += length
            case kind:
                size, code = {1: (8, "<d"), 5: (4, "<f")}[kind]
                yield key >> 3, struct.unpack_from(code, data, place)[0]
                place += size
