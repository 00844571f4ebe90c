"""Choosing the next token: `ref.py` defines the filters, `filters.py` is the same without sorting, in JAX."""
