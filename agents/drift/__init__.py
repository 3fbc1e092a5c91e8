"""Noticing that a stream is no longer what it was: fast by its pictures, slowly by its answers. What is done about it lives elsewhere."""
