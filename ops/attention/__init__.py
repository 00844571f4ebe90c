"""Attention. `ref.py` defines it; each other file is one algorithm, and `cases.py` what all of them are tried on.

    attention          naive.py, blocked.py (FlashAttention), split.py (FlashDecoding)
    paged attention    paged.py: keys and values in pages behind a table
    latent attention   mla.py: DeepSeek-V2's, expanded and absorbed

`scores.py` is what they share: which keys a query sees, and how strongly.
"""
