"""What a model that is written takes over from the one it was made of: its kind of files, its tokenizer."""

from glob import escape
from pathlib import Path
from typing import Any

from ..errors import UserError
from .gguf import GGUF, PART
from .gguf_writer import tokenizer_metadata
from .loader import Checkpoint, open_checkpoint
from .prequantised import Prequantised
from .vocabulary import tokenizer_to_gguf

# Files of a folder that belong to the tokenizer or say how to generate.
OTHERS = "tokenizer.json tokenizer.model tokenizer_config.json chat_template.jinja generation_config.json".split()


def open_origin(path: Path, target: Path) -> Checkpoint:
    """The checkpoint at a path, of which another is to be made.

    A GGUF file can be made of either kind, a folder of a folder alone. UserError if `target` is neither, or there
    already, or the origin is in few bits.
    """
    checkpoint = open_checkpoint(path)
    if not isinstance(checkpoint, Checkpoint) or isinstance(checkpoint.source, Prequantised):
        raise UserError(f"{path}: is in few bits already, expected the model that it was made from")
    if target.exists():
        raise UserError(f"{target} is there already; move it away, or name another output")
    if path.is_file() and target.suffix != ".gguf":
        expected = "a name that ends in .gguf"
        raise UserError(f"the output is {target}, but the model comes as a file; expected {expected}")
    return checkpoint


def other_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """What else a new folder needs, by name."""
    folder = Path(checkpoint.source.where)
    return {name: (folder / name).read_bytes() for name in OTHERS if (folder / name).is_file()}


def tokenizer_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The metadata of its tokenizer for a new GGUF file."""
    source = checkpoint.source
    if isinstance(source, GGUF):
        return tokenizer_metadata(source)
    return tokenizer_to_gguf(Path(source.where), checkpoint.config)


def size_of(path: Path) -> int:
    """Bytes of all files of a model."""
    return sum(file.stat().st_size for file in files_of(path))


def files_of(path: Path) -> list[Path]:
    """The files of the model at a path: all in a folder, all that one was split into, or the one."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    split = PART.fullmatch(path.name)
    return [path] if split is None else sorted(path.parent.glob(f"{escape(split[1])}-*-of-{split[2]}.gguf"))
