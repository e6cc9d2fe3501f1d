"""Values, JSON and files: how they are checked, shown, read and written."""
