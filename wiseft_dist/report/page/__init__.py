"""A page that needs nothing beside itself: sections, charts, and the file they become. It knows nothing of runs."""
