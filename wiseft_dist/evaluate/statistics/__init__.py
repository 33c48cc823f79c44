"""From cells to numbers that people trust: metrics, intervals, tests, the choice of alpha. No torch here."""
