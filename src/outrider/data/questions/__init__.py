"""Public question sets in their published layouts; nobody's text is shipped."""
