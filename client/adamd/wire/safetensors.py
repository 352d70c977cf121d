"""The safetensors format, read and written without a copy.

https://github.com/huggingface/safetensors#format: 8 bytes N, little-endian; N bytes of a JSON object that maps
names to ``{"dtype", "shape", "data_offsets"}`` and may have ``__metadata__`` (strings to strings); then the
data, with no holes and no overlaps. The library itself wants the whole body as ``bytes``, which would be one
more copy of every gradient; tests compare this module with it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from adamd.errors import MalformedBody, WrongDtype
from adamd.wire.dtypes import ITEMSIZE, SAFETENSORS, TO_SAFETENSORS
from adamd.wire.layout import MAX_NAME, MAX_TENSORS, Tensor, check_tensors, shown

# An exported state has up to four tensors for each of its layout's, with a prefix, and tells the layout besides.
MOST = 4 * MAX_TENSORS
LONGEST = MAX_NAME + 32
MAX_HEADER = 32 * 1024 * 1024  # the library itself allows 100 MB
# Parsed JSON takes twenty times its text at worst: what no header needs is refused before it is parsed.
MAX_BRACKETS = 4 * MOST
MAX_COMMAS = 16 * MOST


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a file: its bytes are ``data[start:end]``."""

    tensor: Tensor
    dtype: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. ``data_start`` is the offset of the data in the whole body."""

    tensors: tuple[Stored, ...]  # in the order of their data
    metadata: dict[str, str]
    data_start: int

    @property
    def nbytes(self) -> int:
        """The length of the whole body."""
        return self.data_start + (self.tensors[-1].end if self.tensors else 0)


def read_header(body: memoryview) -> Header:
    """Read and check the header of a whole body.

    Raises:
        MalformedBody: a header that lies: truncated, huge, no JSON, overlaps, holes, offsets past the end.
        WrongDtype: a dtype that no session takes.
        WrongLayout: names, ranks or sizes that no layout has.

    """
    if body.nbytes < 8:
        raise MalformedBody(f"safetensors: {body.nbytes} bytes are too few for a header's length (8)")
    (length,) = struct.unpack_from("<Q", body)
    if length > MAX_HEADER:
        raise MalformedBody(f"safetensors: a header of {length} bytes; at most {MAX_HEADER} are accepted")
    if 8 + length > body.nbytes:
        raise MalformedBody(f"safetensors: the header has {length} bytes, the body only {body.nbytes - 8} more")
    raw = _parse(bytes(body[8 : 8 + length]))
    metadata = _metadata(raw.pop("__metadata__", None))
    header = Header(_tensors(raw), metadata, 8 + length)
    if header.nbytes != body.nbytes:
        raise MalformedBody(f"safetensors: the tensors end at byte {header.nbytes}, the body at {body.nbytes}")
    return header


def write_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the header for (name, dtype, shape) whose data follow in this order, padded to 8 bytes."""
    document: dict[str, Any] = {}
    if metadata:
        document["__metadata__"] = dict(metadata)
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + Tensor(name, shape).size * ITEMSIZE[dtype]
        document[name] = {"dtype": TO_SAFETENSORS[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parse(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):  # json.loads would take a BOM, and UTF-16, which no other reader does
        raise MalformedBody("safetensors: the header does not begin with {")
    if text.count(b"[") + text.count(b"{") > MAX_BRACKETS or text.count(b",") > MAX_COMMAS:
        raise MalformedBody(f"safetensors: the header has more in it than {MOST} tensors need")
    try:
        raw = json.loads(str(text, "utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except MalformedBody:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedBody(f"safetensors: the header is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise MalformedBody("safetensors: the header is not a JSON object")
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedBody("safetensors: a name comes twice in the header")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _metadata(raw: Any) -> dict[str, str]:
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise MalformedBody("safetensors: __metadata__ maps strings to strings")
    try:
        "".join([*raw, *raw.values()]).encode()
    except UnicodeEncodeError:  # JSON can spell half a character
        raise MalformedBody("safetensors: __metadata__ has a lone surrogate") from None
    return raw


def _tensors(raw: dict[str, Any]) -> tuple[Stored, ...]:
    stored = sorted((_stored(name, item) for name, item in raw.items()), key=lambda s: (s.start, s.end))
    check_tensors(tuple(s.tensor for s in stored), MOST, LONGEST)
    end = 0
    for item in stored:
        if item.start != end:
            what = "overlaps the one before it" if item.start < end else "leaves a hole before it"
            raise MalformedBody(f"safetensors: tensor {item.tensor.name!r} at byte {item.start} {what}")
        end = item.end
    return tuple(stored)


def _stored(name: str, item: Any) -> Stored:
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise MalformedBody(f"safetensors: tensor {shown(name)} wants exactly dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS:
        raise WrongDtype(f"tensor {shown(name)} has dtype {shown(dtype)}; accepted are {', '.join(SAFETENSORS)}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise MalformedBody(f"safetensors: tensor {shown(name)}: shape and data_offsets are lists")
    if not all(type(offset) is int and 0 <= offset < 2**63 for offset in offsets):
        raise MalformedBody(f"safetensors: tensor {shown(name)}: data_offsets are not offsets")
    tensor = Tensor(name, tuple(shape))
    check_tensors((tensor,), MOST, LONGEST)
    nbytes = tensor.size * ITEMSIZE[SAFETENSORS[dtype]]
    if offsets[1] - offsets[0] != nbytes:
        raise MalformedBody(
            f"safetensors: tensor {shown(name)} has {offsets[1] - offsets[0]} bytes; its shape and dtype need {nbytes}"
        )
    return Stored(tensor, SAFETENSORS[dtype], offsets[0], offsets[1])
