"""Parts of the engine beside the algorithm: options, the guard, the clock, the memory plan and the check of drafts."""
