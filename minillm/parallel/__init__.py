"""One model on many devices, each of which holds a piece of it.

The devices stand in a mesh whose axes have names (`mesh.py`), and a table says which sizes each axis divides
(`rules.py`). A device then runs the ordinary `Model` of a smaller config, with fewer heads and fewer channels; only
a few of its weights know that there are others, and add up what all have made (`weights.py`). What holds the pieces
together has the methods of a `Model` itself (`model.py`), so whoever generates, scores or serves need not know.
Weights in few bits are cut like any others (`few_bits.py`), and can be made so where they lie (`quantise.py`).
"""

from .mesh import new_mesh
from .model import Spread, answers, spread
from .rules import local

__all__ = ["Spread", "answers", "local", "new_mesh", "spread"]
