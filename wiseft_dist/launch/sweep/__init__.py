"""A sweep: a run for every combination of settings, submitted together, compared in one table, averaged in a soup."""
