"""A request's way in and out: prompts, chat templates, text and events."""
