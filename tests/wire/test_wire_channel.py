"""Both ends of a gRPC channel agree.

Neither sends what the other takes for an attack, or cannot take at all.
"""

from adamd.wire import channel


def test_a_client_asks_less_often_than_a_server_allows():
    client, server = dict(channel.client_options()), dict(channel.server_options(7))
    assert client["grpc.keepalive_time_ms"] > server["grpc.http2.min_ping_interval_without_data_ms"]
    # grpc's own servers end a connection that pings more often than this while no call is open.
    assert server["grpc.keepalive_permit_without_calls"] == client["grpc.keepalive_permit_without_calls"] == 1
    assert client["grpc.keepalive_timeout_ms"] < client["grpc.keepalive_time_ms"]
    assert server["grpc.max_concurrent_streams"] == 7 and server["grpc.so_reuseport"] == 0


def test_what_one_end_may_send_the_other_takes():
    client, server = dict(channel.client_options()), dict(channel.server_options(7))
    for one, other in ((client, server), (server, client)):
        assert one["grpc.max_send_message_length"] <= other["grpc.max_receive_message_length"]
    assert channel.PIECE + channel.MARGIN <= channel.MAX_MESSAGE


def test_a_body_of_good_pieces_is_never_too_many():
    for nbytes in (0, 1, 4095, 4096, 10**6, 2**31):
        assert -(-nbytes // channel.LEAST_PIECE) < channel.most_pieces(nbytes)
