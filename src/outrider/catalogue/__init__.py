"""Published and shipped drafters of a target, and which of them can be used here."""
