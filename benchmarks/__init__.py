"""Ours, the peer and the physical limit, in one run on one machine: ``python -m benchmarks.NAME``."""
