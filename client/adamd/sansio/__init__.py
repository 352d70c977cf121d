"""The SDK's logic without I/O: operations, retries, what is known of a session, arrays in and out."""
