"""Attention in three kinds, each with a definition and several algorithms.

    attention          ref.py        naive.py, blocked.py (FlashAttention), split.py (FlashDecoding), ring.py
                                     (ring attention: keys and values on several devices)
    paged attention    paged_ref.py  paged.py: keys and values in pages behind a table
    latent attention   mla_ref.py    mla.py: DeepSeek-V2's, expanded and absorbed

`pallas_*.py` are kernels for GPUs and TPUs; which tiles of scores the latter visit is in `tiles.py`.

`scores.py` says for all of them which keys a query sees and how strongly. What they are tried on is in `cases*.py`,
with `laws.py` and `look_ups.py`.
"""
