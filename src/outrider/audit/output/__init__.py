"""An audit's report as a page and as lines."""
