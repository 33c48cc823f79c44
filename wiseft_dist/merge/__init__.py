"""From two models to ensembles: the arithmetic, writing them in one pass, and ensembles in memory."""
