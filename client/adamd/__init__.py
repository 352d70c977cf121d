"""adamd: Adam as a daemon."""
