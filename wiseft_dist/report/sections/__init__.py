"""What the page of a run says: one file for each group of sections."""
