"""Equal texts: is a difference a numerical tie or a violation, and how many are there?"""
