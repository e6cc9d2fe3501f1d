"""Commands that are killed at random moments and must go on where they were."""
