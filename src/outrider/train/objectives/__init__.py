"""The trainable methods: what they predict at each depth, and their losses."""
