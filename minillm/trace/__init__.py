"""Seeing inside: a real prompt goes through the real model, and what happened becomes a page.

    watched.py   blocks that also tell what went through them; the model's own code runs, and none of it knows
    record.py    a generation with such a model: what was seen in every pass, as NumPy arrays
    work.py      what a block's pass costs: shapes by letter, bytes moved, multiplications
    rounding.py  what rounding did to the weights, and to what flows through the layers
    page.py      a record as one HTML file: page.html, with page.css and page.js in it

Nothing else in the project knows of this package, so a model that is not watched runs the program it always ran.
"""

from .page import page_of, write_page
from .record import Pass, Record, watch
from .rounding import rounding_errors, stream_errors

__all__ = ["Pass", "Record", "page_of", "rounding_errors", "stream_errors", "watch", "write_page"]
