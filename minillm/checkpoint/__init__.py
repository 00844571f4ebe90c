"""Checkpoints: the files of a model, opened without trust and read by slice; `loader.py` puts them together."""
