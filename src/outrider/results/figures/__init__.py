"""Figures of results, drawn by Matplotlib as SVG: bars and lines, for pages and for files."""
