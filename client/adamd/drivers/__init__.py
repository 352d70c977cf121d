"""Drivers run the logic over a transport: blocking, in threads for asyncio, or in the background."""
