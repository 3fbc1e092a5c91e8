"""Faults on real clusters and processes, and the judge of what they broke, for tests/faults and `headwater bench faults`."""
