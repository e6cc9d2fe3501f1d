"""What the loop needs besides the algorithm: its lock, its clock, the memory plan and the check of drafts."""
