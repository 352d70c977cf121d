"""Runs the logic over a transport: blocking, on threads for asyncio, or in the background."""
