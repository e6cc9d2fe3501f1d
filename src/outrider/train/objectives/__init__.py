"""One file per trainable method."""
