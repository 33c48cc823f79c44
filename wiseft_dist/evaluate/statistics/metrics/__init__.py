"""What is computed from per-sample predictions, one file a family. All fractions; numpy only."""
