"""The contract of client and server: layouts, dtypes, encodings, bytes to records. No I/O."""
