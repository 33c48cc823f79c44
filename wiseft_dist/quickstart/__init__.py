"""The whole road on pictures that it draws itself: no data, no network, no GPU."""
