"""Messages read and written by hand are the ones that protobuf reads and writes, whatever comes."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from adamd.wire import pieces
from adamd.wire.pieces import Piece
from adamd.wire.v1 import adamd_pb2 as pb

CODECS = [
    pieces.STEP_REQUEST,
    pieces.STEP_RESPONSE,
    pieces.STREAM_REQUEST,
    pieces.STREAM_RESPONSE,
    pieces.CONTRIBUTE_REQUEST,
    pieces.PARAMETERS_RESPONSE,
    pieces.STATE_RESPONSE,
]
EACH = pytest.mark.parametrize("codec", CODECS, ids=[codec.kind.DESCRIPTOR.name for codec in CODECS])
HEADERS = st.builds(pb.StepHeader, session=st.text(max_size=20), step=st.integers(0, 2**64 - 1), minimal=st.booleans())
CONTRIBUTE_HEADERS = st.builds(
    pb.ContributeHeader, session=st.text(max_size=20), round=st.integers(0, 2**64 - 1), num_examples=st.floats(0, 9)
)
STANDINGS = st.builds(pb.Standing, step=st.integers(0, 2**64 - 1), nbytes=st.integers(0, 2**64 - 1))
VARINTS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))


def head_of(codec, data):
    heads = {pb.StepHeader: HEADERS, pb.ContributeHeader: CONTRIBUTE_HEADERS, pb.Standing: STANDINGS}
    return data.draw(st.none() | heads[codec.head])


def by_protobuf(codec, raw):
    """What protobuf makes of it: (head, offset, data), or None."""
    try:
        message = codec.kind.FromString(raw)
    except DecodeError:
        return None
    head = getattr(message, codec.head_name) if message.HasField(codec.head_name) else None
    return head, getattr(message, "offset", 0), getattr(message, codec.data_name)


def by_hand(codec, raw):
    try:
        piece = codec.read(raw)
    except DecodeError:
        return None
    return piece.head, piece.offset, bytes(piece.data)


@EACH
@given(data=st.data())
def test_what_is_written_is_what_protobuf_writes(codec, data):
    head = head_of(codec, data)
    offset = data.draw(VARINTS) if codec.data_field == 3 else 0
    body = data.draw(st.binary(max_size=400))
    fields = {codec.data_name: body, **({codec.head_name: head} if head is not None else {})}
    message = codec.kind(**fields, **({"offset": offset} if codec.data_field == 3 else {}))
    raw = codec.write(Piece(head, offset, memoryview(body)))
    assert raw == message.SerializeToString()
    assert by_hand(codec, raw) == (head, offset, body)


@EACH
@given(raw=st.binary(max_size=60))
@example(raw=b"")
@example(raw=b"\x0a")
@example(raw=b"\x0a\x00\x10\x00\x1a\x00")
@example(raw=b"\x10" + b"\xff" * 9 + b"\x01")  # 2^64 - 1
@example(raw=b"\x10" + b"\xff" * 10 + b"\x01")  # one byte too many
@example(raw=b"\x1a\x05abc")
@example(raw=b"\x1a\x01a\x1a\x01b")  # the last one counts
@example(raw=b"\x0a\x02\x10\x01\x0a\x02\x10\x02")  # two heads are merged
@example(raw=b"\x1a\x01a\x10\x05")  # another order
@example(raw=b"\x1a\x81\x00a")  # a length in more bytes than it needs
@example(raw=b"\x22\x01x\x1a\x01a")  # a field of a later version
@example(raw=b"\x12\x01a")
def test_whatever_comes_is_read_as_protobuf_reads_it(codec, raw):
    assert by_hand(codec, raw) == by_protobuf(codec, raw)


@EACH
@given(data=st.data())
def test_what_nearly_is_a_message_is_read_as_protobuf_reads_it(codec, data):
    """Real messages with a byte changed, cut, or with parts in another order or twice."""
    head = head_of(codec, data)
    raw = codec.write(
        Piece(head, data.draw(VARINTS) if codec.data_field == 3 else 0, data.draw(st.binary(max_size=40)))
    )
    other = codec.write(Piece(head_of(codec, data), 0, data.draw(st.binary(max_size=4))))
    kind = data.draw(st.sampled_from(["changed", "cut", "joined"]))
    if kind == "joined":
        raw = data.draw(st.sampled_from([raw + other, other + raw]))
    elif raw:
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] if kind == "cut" else raw[:at] + bytes((data.draw(st.integers(0, 255)),)) + raw[at + 1 :]
    assert by_hand(codec, raw) == by_protobuf(codec, raw)


def test_the_bytes_of_a_piece_are_not_copied():
    raw = pieces.STREAM_REQUEST.write(Piece(pb.StepHeader(session="a", step=1), 7, bytes(1 << 20)))
    piece = pieces.STREAM_REQUEST.read(raw)
    assert isinstance(piece.data, memoryview) and piece.data.obj is raw
