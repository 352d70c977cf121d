"""HTTP: decode, call the engine, encode. Every rule stands elsewhere."""
