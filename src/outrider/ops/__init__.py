"""The operations of a decoder layer, behind one seam with one back end per file."""
