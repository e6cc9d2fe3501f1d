"""Layers of evidence: rules, the contract, texts and laws."""
