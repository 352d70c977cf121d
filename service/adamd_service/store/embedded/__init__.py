"""The private store: a Valkey as a child process, its files, and the room on its disk."""
