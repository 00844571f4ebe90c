"""Choosing the next token.

`ref.py` defines the filters, `filters.py` is the same without sorting. `samplers.py` draws a token;
`speculative.py` decides which drafted tokens stay, as `speculative_ref.py` defines it.
"""
