"""The SDK's logic without I/O: operations, retries, the state of a session, arrays in and out."""
