"""Features of theta_0 for linear heads: computed once, kept in files, streamed in the order of training."""
