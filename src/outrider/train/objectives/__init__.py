"""What each trainable method predicts at each depth, and its loss."""
