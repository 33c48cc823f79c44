"""From cells to what people look at: results.csv, the curve, the page."""
