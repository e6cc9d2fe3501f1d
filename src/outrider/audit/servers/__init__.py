"""The audit of a server that already runs, by its texts."""
