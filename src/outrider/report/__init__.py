"""Runs as one self-contained HTML page: sources, sections, and the page that holds them."""
