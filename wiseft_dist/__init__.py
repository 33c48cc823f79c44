"""Robust fine-tuning of zero-shot models (WiSE-FT, arXiv 2109.01903) at cluster scale."""

__version__ = "0.1.0"
