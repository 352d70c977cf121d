"""The contract that client and server share: layouts, dtypes, encodings. Bytes to typed records; no I/O."""
