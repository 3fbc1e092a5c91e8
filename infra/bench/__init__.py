"""Benchmarks that hold Headwater's parts against what people would use otherwise, on the same work and the same machine."""
