"""Reads and writes bulk messages without protobuf's copies of their bytes.

Each has the same form: a small message in field 1, perhaps an offset in field 2, and then the bytes. Messages in that
order, which every protobuf library writes, are read by hand, with the bytes as a view. Protobuf reads any other order.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from adamd.wire.v1 import adamd_pb2 as pb

Head = TypeVar("Head", bound=Message)
HEAD = 0x0A  # field 1, length-delimited
OFFSET = 0x10  # field 2, varint
Data = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Piece(Generic[Head]):
    """One such message. ``head`` is None where field 1 is absent."""

    head: Head | None
    offset: int
    data: Data


@dataclass(frozen=True, slots=True)
class Codec(Generic[Head]):
    """Reads and writes one kind of message.

    Args:
        kind: protobuf's class for it.
        head: of field 1.
        head_name: its name in ``kind``.
        data_name: the name of the field of bytes.
        data_field: its number; 3 where field 2 is the offset, 2 where there is none.

    """

    kind: type[Any]
    head: type[Head]
    head_name: str
    data_name: str
    data_field: int

    def read(self, raw: bytes) -> Piece[Head]:
        """Read a message.

        Raises:
            google.protobuf.message.DecodeError: it is none.

        """
        piece = self._quick(raw)
        return self._slow(raw) if piece is None else piece

    def write(self, piece: Piece[Head]) -> bytes:
        """Write a message, as protobuf would."""
        parts: list[Data] = []
        if piece.head is not None:
            head = piece.head.SerializeToString()
            parts += [b"\x0a", _varint(len(head)), head]
        if piece.offset:
            parts += [b"\x10", _varint(piece.offset)]
        if len(piece.data):
            parts += [bytes((self.data_field << 3 | 2,)), _varint(len(piece.data)), piece.data]
        return b"".join(parts)

    def _quick(self, raw: bytes) -> Piece[Head] | None:
        """Read the usual order; None where there is anything unusual."""
        at, end, head, offset = 0, len(raw), None, 0
        try:
            if at < end and raw[at] == HEAD:
                length, at = _read_varint(raw, at + 1)
                if at + length > end:
                    return None
                head, at = self.head.FromString(raw[at : at + length]), at + length
            if at < end and raw[at] == OFFSET and self.data_field == 3:
                offset, at = _read_varint(raw, at + 1)
            if at == end:
                return Piece(head, offset, b"")
            if raw[at] != self.data_field << 3 | 2:
                return None
            length, at = _read_varint(raw, at + 1)
        except IndexError:
            return None
        return Piece(head, offset, memoryview(raw)[at:]) if at + length == end else None

    def _slow(self, raw: bytes) -> Piece[Head]:
        message = self.kind.FromString(raw)
        head = getattr(message, self.head_name) if message.HasField(self.head_name) else None
        return Piece(head, getattr(message, "offset", 0), getattr(message, self.data_name))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return a varint and where it ends; IndexError where it is cut or longer than it need be for 63 bits."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 56:
            raise IndexError  # protobuf shall decide


STEP_REQUEST = Codec(pb.StepRequest, pb.StepHeader, "header", "gradient", 2)
STEP_RESPONSE = Codec(pb.StepResponse, pb.Standing, "standing", "parameters", 2)
STREAM_REQUEST = Codec(pb.StepStreamRequest, pb.StepHeader, "header", "data", 3)
STREAM_RESPONSE = Codec(pb.StepStreamResponse, pb.Standing, "standing", "data", 3)
CONTRIBUTE_REQUEST = Codec(pb.ContributeRequest, pb.ContributeHeader, "header", "data", 3)
PARAMETERS_RESPONSE = Codec(pb.GetParametersResponse, pb.Standing, "standing", "data", 3)
STATE_RESPONSE = Codec(pb.ExportStateResponse, pb.Standing, "standing", "data", 3)
