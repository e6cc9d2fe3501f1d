"""What a caller hands in, and what comes back: prompts, chat templates, text and events."""
