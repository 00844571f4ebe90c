"""Number formats as bytes on disk: `ref.py` decodes a block as its layout reads, `gguf.py` a tensor."""
