"""Constants of a gRPC channel that both ends agree on: names, sizes, keepalive."""

from __future__ import annotations

SERVICE = "adamd.v1.OptimizerService"
DEFAULT_PORT = 50051

UNARY = 4 * 1024 * 1024  # bytes of a gradient or of parameters that travel inside one message
MARGIN = 256 * 1024  # of what travels with them: a header, settings, names
MAX_MESSAGE = UNARY + MARGIN
LOOKAHEAD = 256 * 1024  # bytes that a server takes of a call which nobody reads yet; 5 M elements a step are no slower
PIECE = 1024 * 1024  # bytes of a stream's pieces: larger ones are no faster, smaller ones cost a message each
LEAST_PIECE = 4096  # bytes that a body's pieces must have on the average
FREE_PIECES = 64  # that may be smaller

PING = 60.0  # seconds of silence after which an end asks whether the other one lives
PING_TIMEOUT = 20.0  # seconds that it waits for the answer
LEAST_PING = 20.0  # seconds between two such questions; a server takes more of them for an attack

ERROR_DOMAIN = "adamd"  # of google.rpc.ErrorInfo
PROBLEM = "problem"  # its metadata: the RFC 9457 document, in JSON

Options = list[tuple[str, int]]


def client_options() -> Options:
    """Return the options of a client's channel."""
    return [*_both(), ("grpc.http2.max_pings_without_data", 0)]


def server_options(streams: int) -> Options:
    """Return the options of a server. ``streams``: calls at once on one connection."""
    return [
        *_both(),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(LEAST_PING)),
        ("grpc.max_concurrent_streams", streams),
        (
            "grpc.http2.bdp_probe",
            0,
        ),  # on a busy machine it let 4 MiB and more of each call in before any code of ours ran
        ("grpc.http2.lookahead_bytes", LOOKAHEAD),
        ("grpc.so_reuseport", 0),  # or two servers could share a port, and a client meet either
    ]


def most_pieces(nbytes: int) -> int:
    """Return how many pieces a body of ``nbytes`` may come in."""
    return FREE_PIECES + nbytes // LEAST_PIECE


def _both() -> Options:
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        ("grpc.http2.max_frame_size", PIECE),  # of 16 KiB each, 80 MB took a fifth longer
        ("grpc.keepalive_time_ms", _ms(PING)),
        ("grpc.keepalive_timeout_ms", _ms(PING_TIMEOUT)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
