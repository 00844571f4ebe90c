"""`python -m minillm` is `minillm`."""

from .cli import main

main()
