"""The result of tuning: decision, report, recipe and tables."""
