"""Parts of the engine beside the algorithm: its guard, its clock, the memory plan and the check of drafts."""
