"""Traces: an answer step by step, with the draft of each step, and the ribbon that shows them."""
