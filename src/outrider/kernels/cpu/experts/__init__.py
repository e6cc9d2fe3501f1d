"""Kernels of a mixture of experts: which experts a row takes, and the products of the rows of each."""
