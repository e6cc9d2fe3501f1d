"""Networks: the decoder of the Llama family and the heads that draft for it."""
