"""The README's picture: a trace's page in a browser, at the step in which it says most.

python -m bench.picture   # needs chromium and pip install -e '.[test]'; writes minillm/trace/trace.png
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import minillm
from minillm import trace
from minillm.sampling import new_sampler

MODEL, PROMPT, TOKENS = "tiny-transformer", "Recipe: Tomato Soup", 6
PLACE = "pass=1&step=7&head=5"  # after "with", a head of layer 3 looks back at "Tomato"
SIZE = {"width": 1280, "height": 800}
TARGET = Path(trace.__file__).with_name("trace.png")


@contextmanager
def browser() -> Iterator[Any]:
    """The system's chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        chromium = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


def page() -> str:
    """The page whose picture it is."""
    seen = trace.watch(minillm.load(MODEL), PROMPT, new_sampler(seed=0), TOKENS)
    return trace.page_of(seen, MODEL)


def take(chromium: Any, html: str, target: Path) -> None:
    """Write the picture of a page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.html"
        file.write_text(html, encoding="utf-8")
        shown = chromium.new_page(viewport=SIZE, color_scheme="light")
        shown.goto(f"{file.as_uri()}#{PLACE}")
        shown.wait_for_selector("#panel h2")
        shown.screenshot(path=target)
        shown.close()


if __name__ == "__main__":
    with browser() as started:
        take(started, page(), TARGET)
    sys.stdout.write(f"{TARGET}: {TARGET.stat().st_size / 1e3:.0f} kB\n")
