"""`outrider profile`: the cost of a step, part by part."""
