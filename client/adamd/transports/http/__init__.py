"""Operations over HTTP/1.1: a pool of connections, and messages that are pure."""
