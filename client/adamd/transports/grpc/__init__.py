"""Operations over gRPC: one channel, a few kept streams, and messages that are pure."""
