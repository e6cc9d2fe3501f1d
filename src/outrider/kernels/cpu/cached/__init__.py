"""The numbers of a cache as kernels read and write them."""
