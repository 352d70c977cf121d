"""Programs that run in their peers' own environments: they import NumPy, the peer, and ``turns``; nothing of adamd."""
