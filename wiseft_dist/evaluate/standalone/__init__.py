"""`wiseft evaluate` without a run: models and datasets that the command line names."""
