"""Attention in three kinds, each with a definition and several algorithms.

    attention          ref.py        naive.py, blocked.py (FlashAttention), split.py (FlashDecoding)
    paged attention    paged_ref.py  paged.py: keys and values in pages behind a table
    latent attention   mla_ref.py    mla.py: DeepSeek-V2's, expanded and absorbed

`scores.py` says for all of them which keys a query sees and how strongly. What they are tried on is in `cases*.py`,
with `laws.py` and `look_ups.py`.
"""
