"""The budget that decides by cost: when to draft, which nodes to verify, and how much each request may lose."""
