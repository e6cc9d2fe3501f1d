"""The engines of a server, in a thread of their own."""
