"""Recurrent memories: `ref.py` and `conv.py` are the definitions, `cases.py` what every form is tried on.

`conv.py` is Mamba's short convolution, `selective_scan.py` Mamba-1, `ssd.py` Mamba-2, `gated_delta.py` the gated
delta rule, the last three in several orders of work. `steps.py` is what they share, `draws.py` and `laws.py` what
`cases.py` is made of, and `pallas_*.py` are kernels for GPUs and TPUs.
"""
