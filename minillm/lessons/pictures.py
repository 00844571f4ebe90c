"""Pictures: what a lesson draws is a PNG in the cache folder, shown at once in a notebook."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders import cache_folder, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A drawing; notebooks show the last value of a cell, if it is one."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


def picture(name: str, draw: "Callable[[Figure], None]", width: float = 8, height: float = 3.5) -> Picture | None:
    """Have `draw` fill a figure of so many inches, keep it as NAME.png and say where.

    None without matplotlib, which a lesson can do without.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"(the picture {name} is left out: it needs matplotlib, pip install 'minillm[plots]')")
        return None
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    draw(figure)
    path = cache_folder() / "pictures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        figure.savefig(part, format="png", bbox_inches="tight")
    print(f"picture: {path}")
    return Picture(path)
