"""Losslessness: exact enumeration, and verdicts on texts that differ."""
