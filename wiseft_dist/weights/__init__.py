"""Weights as named slices of files: whatever people have is opened by position, without trusting a pickle."""
