"""Attention: `ref.py` is the definition, `naive.py` the same in readable JAX, `cases.py` what both are tried on."""
