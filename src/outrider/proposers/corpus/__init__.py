"""Corpora on disk: texts with a suffix array, which lookups search beside the request's own text."""
