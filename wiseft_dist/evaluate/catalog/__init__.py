"""Datasets as data: YAML and text files, and what reads them."""
