"""Mixture of experts: `router.py` chooses experts, `dense.py`, `sorted.py` and `capacity.py` run them."""
