"""Number formats as bytes on disk: `ref.py` decodes one block as its layout reads, `gguf.py` whole tensors."""
