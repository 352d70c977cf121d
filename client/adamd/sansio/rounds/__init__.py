"""Federations: the flows of their clients and of their coordinator, state dicts, documents of rounds. No I/O."""
