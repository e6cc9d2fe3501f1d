"""Charts and Markdown tables."""
