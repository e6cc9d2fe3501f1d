"""The cost of a step on this machine: tables, their measurement, and the identity they belong to."""
