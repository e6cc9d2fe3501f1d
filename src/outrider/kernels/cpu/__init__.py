"""The CPU kernels: vectors, a thread pool, matrix products, softmax and attention."""
