"""The indices behind n-gram and suffix decoding."""
