"""One decode pass for all members: every alpha, and what no alpha changes computed once."""
