"""What a model that is written takes over from the one it was made of: its kind of files, its tokenizer."""

from pathlib import Path

from ..errors import UserError
from .loader import Checkpoint, open_checkpoint

# Files of a folder that belong to the tokenizer or say how to generate.
OTHERS = "tokenizer.json tokenizer.model tokenizer_config.json chat_template.jinja generation_config.json".split()


def open_origin(path: Path, target: Path) -> Checkpoint:
    """The checkpoint at a path, of which another is to be made.

    UserError if there is no room at `target`, that is to be of another kind, or the first is in few bits already.
    """
    checkpoint = open_checkpoint(path)
    if not isinstance(checkpoint, Checkpoint):
        raise UserError(f"{path}: is in few bits already, expected the model that it was made from")
    if target.exists():
        raise UserError(f"{target} is there already; move it away, or name another output")
    if path.is_file() != (target.suffix == ".gguf"):
        is_file = path.is_file()
        kind, expected = ("file", "a name that ends in .gguf") if is_file else ("folder", "the name of a folder")
        raise UserError(f"the output is {target}, but the model comes as a {kind}; expected {expected}")
    return checkpoint


def other_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """What else a new folder needs, by name."""
    folder = Path(checkpoint.source.where)
    return {name: (folder / name).read_bytes() for name in OTHERS if (folder / name).is_file()}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
