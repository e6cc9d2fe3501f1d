"""Checkpoint layouts: how each kind of head is laid out on disk by those who publish it, in and out."""
