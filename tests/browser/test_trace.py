"""The page of a trace in a real browser: it can be walked, it says what was recorded, and all can use it."""

import os
import re
import shutil
from functools import partial
from typing import Any

import numpy as np
import pytest
from traces import Parrot, quick_programs

import minillm
from bench import picture
from minillm.sampling import new_sampler
from minillm.trace import page_of, rounding_errors, stream_errors, watch, write_page

pytestmark = pytest.mark.slow
PROMPT = "Recipe: Soup. Recipe: Soup. Recipe:"
WIDTHS, SCHEMES = (390, 1280), ("light", "dark")

# Of a step: what the page says, cell by cell in its tables.
READ = """() => ({
  where: $("where").textContent,
  title: document.querySelector("#panel h2").textContent,
  text: $("panel").innerText,
  tables: [...document.querySelectorAll("#panel table")].map(table =>
    [...table.rows].map(row => [...row.cells].map(cell => cell.innerText.trim()))),
})"""

# What is wrong with what is on the screen, for somebody who wants to read it.
FAULTS = """() => {
  const faults = [], root = document.documentElement;
  if (root.scrollWidth > innerWidth) faults.push(`the page is ${root.scrollWidth} wide`);
  for (const box of [$("list"), $("strip")]) if (box.scrollWidth > box.clientWidth) faults.push(`cut: ${box.id}`);
  const parsed = color => { const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (c, under) => under.map((x, i) => c[i] * c[3] + x * (1 - c[3]));
  const light = rgb => rgb.map(x => x / 255).map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const element = words.currentNode.parentElement, said = words.currentNode.textContent.trim();
    if (!said || !element.checkVisibility() || element.closest("script")) continue;
    const range = document.createRange(); range.selectNodeContents(words.currentNode);
    const box = range.getBoundingClientRect(), scrolls = element.closest(".scroll, pre, .strip, nav");
    if (!scrolls && (box.left < 0 || box.right > innerWidth + 1)) faults.push(`outside of the screen: ${said}`);
    let under = [255, 255, 255]; const above = [];
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      above.unshift(parsed(style.backgroundColor));
      if (style.overflowX === "hidden" && e.scrollWidth > e.clientWidth) faults.push(`cut: ${said}`);
      if (style.opacity !== "1" && !e.disabled) faults.push(`see-through: ${said}`);
    }
    under = above.reduce((rgb, c) => over(c, rgb), under);
    const ink = over(parsed(getComputedStyle(element).color), under);
    const [a, b] = [light(ink), light(under)].sort((x, y) => y - x);
    const contrast = (a + .05) / (b + .05);
    if (contrast < 4.5 && !element.closest(":disabled")) faults.push(`contrast ${contrast.toFixed(2)}: ${said}`);
  }
  scrollTo(0, root.scrollHeight);
  for (const id of ["back", "next", "passback", "passnext"]) {
    const { left, top, right, bottom } = $(id).getBoundingClientRect();
    if (left < 0 || top < 0 || right > innerWidth || bottom > innerHeight) faults.push(`out of reach: ${id}`);
  }
  scrollTo(0, 0);
  return [...new Set(faults)];
}"""


@pytest.fixture(scope="module")
def chromium():
    if shutil.which("chromium") is None and "CI" not in os.environ:
        pytest.skip("needs chromium; CI installs it")
    with picture.browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def recorded():
    """By kind of model what was recorded, how far rounding moved it, and its page."""
    with quick_programs():
        exact = minillm.load("tiny-draft")
        rounded, _ = exact.quantize("int4-g32")
        plain = made(rounded, 5, exact=exact.model)
        yield {
            "transformer": plain,
            "draft": made(rounded, 5, Parrot(plain[0].text), exact.model),
            "moe": made(minillm.load("tiny-moe"), 2),
            "mamba": made(minillm.load("tiny-mamba"), 2),
            "hybrid": made(minillm.load("tiny-hybrid"), 3, page_size=8),
        }


def made(lm, max_tokens, drafter=None, exact=None, page_size=0):
    seen = watch(lm, PROMPT, new_sampler(temperature=0.5, top_k=20, seed=3), max_tokens, drafter, page_size)
    if exact is None:
        return seen, None, page_of(seen, "a model")
    drift = stream_errors(seen, exact)
    return seen, drift, page_of(seen, "a model", rounding_errors(exact, lm.model), drift)


@pytest.fixture
def opened(chromium, recorded, tmp_path):
    """A function that opens a page of some width and scheme; afterwards nothing went wrong, and it asked nobody."""
    contexts, said, asked = [], [], []

    def of(kind, width=1280, scheme="light", place=""):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        write_page(tmp_path / "page.html", recorded[kind][2])
        page.goto(f"file://{tmp_path}/page.html#{place}")
        page.wait_for_selector("#panel h2")
        return page

    yield of
    for context in contexts:
        context.close()
    assert not said
    assert {re.sub("#.*", "", url) for url in asked} == {f"file://{tmp_path}/page.html"}


@pytest.mark.parametrize("kind", ["transformer", "draft", "moe", "mamba", "hybrid"])
def test_it_walks_through_the_generation_and_back_and_says_what_was_recorded(kind, opened, recorded):
    page, (seen, drift, _) = opened(kind), recorded[kind]
    blocks = [f"Layer {i}" for i, layer in enumerate(seen.lm.config.layers) for _ in layer]
    titles = ["token", *blocks, *["What rounding did"] * (drift is not None), "What could come next", "The choice"]
    there = [page.evaluate(READ)]
    for one in seen.passes:
        for place, title in enumerate(titles):
            step = there[-1]
            assert title in step["title"]
            assert len(step["text"]) > 100
            if title.startswith("Layer"):
                check_block(page, step["text"], step["tables"], seen, one, place - 1)
            elif title == "What rounding did":
                check_rounding(step["tables"][0], drift, one)
            else:
                {"token": check_tokens, "What could come next": check_head, "The choice": check_choice}[title](
                    step["tables"], seen.lm, one
                )
            if not (one is seen.passes[-1] and title == "The choice"):
                page.keyboard.press("ArrowDown")
                there.append(page.evaluate(READ))
    assert page.is_disabled("#next")
    back = []
    while not page.is_disabled("#back"):
        back.append(page.evaluate(READ))
        page.keyboard.press("ArrowUp")
    assert [page.evaluate(READ), *reversed(back)] == there


def near(said: str, number: Any, digits: int = 3) -> bool:
    """Whether a page's number is that number to so many digits."""
    return bool(np.isclose(float(said), number, rtol=0.6 * 10 ** (1 - digits), atol=1e-12))


def shares_near(said: str, p: Any) -> bool:
    """Whether a percentage, of two digits, is that probability."""
    if said in ("0", "<0.01 %"):
        return bool(p < 1.01e-4)
    return bool(np.isclose(float(said.removesuffix(" %")) / 100, p, rtol=0.06))


def check_tokens(tables, lm, one):
    rows = tables[0][1:]
    assert [int(row[2]) for row in rows] == one.tokens
    assert [int(row[0]) for row in rows] == list(range(one.start, one.start + len(one.tokens)))
    lengths = np.linalg.norm(one.blocks[0]["x"], axis=-1)
    assert all(near(row[3], length) for row, length in zip(rows, lengths, strict=True))


def check_head(tables, lm, one):
    best = np.argsort(-one.lens[-1], kind="stable")[: len(tables[0]) - 1]
    for (_, logit, p), token in zip(tables[0][1:], best, strict=True):
        assert near(logit, one.lens[-1][token], 4)
        assert shares_near(p, probabilities(one.lens[-1])[token])
    lengths = [np.linalg.norm(one.blocks[0]["x"][one.speaks])]
    lengths += [np.linalg.norm(block["y"][one.speaks]) for block in one.blocks]
    assert all(near(row[1], length) for row, length in zip(tables[1][1:], lengths, strict=True))


def check_choice(tables, lm, one):
    stages = list(one.stages.values())
    tokens = np.argsort(-stages[0], kind="stable")[:10]
    for row, token in zip(tables[0][1:], tokens, strict=False):
        assert all(shares_near(p, probabilities(x)[token]) for p, x in zip(row[1:], stages, strict=True))
    assert tables[0][-1][1:] == [f"{np.isfinite(stage).sum()} tokens" for stage in stages]
    if one.drafted:
        verdicts = [row[2] for row in tables[1][1:]]
        assert verdicts[: one.n_kept] == [*["accepted"] * (one.n_kept - 1), "rejected"][: len(verdicts)]
        assert set(verdicts[one.n_kept :]) <= {"falls with the one before it"}


def check_rounding(rows, drift, one):
    assert all(shares_near(row[1], x) for row, x in zip(rows[1:], drift[:, one.start + one.speaks], strict=True))


def check_block(page, text, tables, seen, one, place):
    block, i = one.blocks[place], one.speaks
    ((length, added),) = re.findall(r"has length (\S+); this step added (\S+)", text)
    assert near(length, np.linalg.norm(block["y"][i]))
    assert near(added, np.linalg.norm(block["y"][i] - block["x"][i]))
    if "weights" in block:
        at = partial(pointed, page, "map-attention", one.start + i)
        mean = block["weights"][:, i].mean(axis=0)
        for s in {0, one.start + i, int(mean.argmax())}:  # √w / 255, and three digits
            assert abs(at(s) - mean[s]) <= np.sqrt(mean[s]) / 255 + 0.006 * mean[s] + 1e-5
    if "gates" in block:
        for name, gate in block["gates"].items():
            (mean,) = re.findall(rf"{name}: mean (\S+), from", text)
            assert np.isclose(float(mean), gate[i, :128].mean(), rtol=0.02)
        state = one.state[place].get("ssm")
        whole = state if state.ndim == 3 else state[None]
        r, c = np.unravel_index(np.abs(whole[0, :64, :128]).argmax(), whole[0, :64, :128].shape)
        assert np.isclose(pointed(page, "map-state", r, c), whole[0, r, c], rtol=0.02)
    if "chosen" in block:
        for expert, share in zip(block["chosen"][i], block["share"][i], strict=True):
            (said,) = re.findall(rf"expert {expert} weight (\S+?),?\s", text)
            assert near(said, share)
        load = np.bincount(block["chosen"].ravel(), minlength=len(tables[0]) - 1)
        assert [int(row[1]) for row in tables[0][1:]] == load.tolist()


def pointed(page, name: str, r: int, c: int) -> float:
    """What the page says when the mouse points at a place of a map."""
    map_ = page.locator(f"#{name}")
    map_.scroll_into_view_if_needed()
    (high, wide), box = map_.evaluate("x => [x.firstChild.height, x.firstChild.width]"), map_.bounding_box()
    step_x, step_y = (box["width"] - 2) / wide, (box["height"] - 2) / high
    page.mouse.move(box["x"] + 1 + (c + 0.5) * step_x, box["y"] + 1 + (r + 0.5) * step_y)
    said = page.evaluate(f"$('{name}').closest('.scroll').nextSibling.textContent")
    page.mouse.move(0, 0)  # what is drawn next under the mouse would be pointed at
    return float(said.rsplit(" ", 1)[1])


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits [v]."""
    p = np.exp(logits.astype(np.float64) - logits.max())
    return p / p.sum()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_kind_of_step_can_be_read(width, scheme, opened, recorded):
    for kind in ("draft", "moe", "mamba", "hybrid"):
        page, (seen, drift, _) = opened(kind, width, scheme), recorded[kind]
        kinds = {type(block).__name__: i + 1 for i, block in enumerate(seen.lm.model.blocks)}
        n = len(seen.lm.model.blocks)
        for place in [0, *kinds.values(), *range(n + 1, n + 3 + (drift is not None))]:
            for number in (0, 1):
                page.evaluate(f"go({{ pass: {number}, step: {place} }})")
                assert page.evaluate(FAULTS) == [], page.evaluate("$('where').textContent")


FOCUS = """() => {
  const here = document.activeElement, style = getComputedStyle(here), box = here.getBoundingClientRect();
  const top = here.closest("article") ? document.querySelector("header").offsetHeight : 0;
  const seen = box.bottom > top && box.top >= top - 1 && box.top < innerHeight;
  return [here.id || here.tagName, `${style.outlineStyle} ${style.outlineWidth}`, seen];
}"""


@pytest.mark.parametrize("width", WIDTHS)
def test_the_keyboard_alone_reaches_all_of_it(width, opened, recorded):
    seen, _, _ = recorded["hybrid"]
    step = 1 + next(i for i, one in enumerate(seen.passes[1].blocks) if "weights" in one)
    page, order = opened("hybrid", width, place=f"pass=1&step={step}"), []
    for _ in range(80):
        page.keyboard.press("Tab")
        name, outline, visible = page.evaluate(FOCUS)
        if name == "BODY":
            break
        assert (outline, visible) == ("solid 2px", True), name
        order.append(name)
    steps = [f"step-{i}" for i in range(page.locator("nav button").count())]
    expected = ["back", "next", "passback", "passnext", "token-0", *steps, "head--1", "head-0", "map-attention"]
    assert [name for name in order if name in expected] == expected
    assert order[-1].startswith("code-")

    page.focus("#head-1")
    page.keyboard.press("Enter")
    assert pressed(page) == ["token-0", "head-1"]
    assert page.evaluate(FOCUS)[0] == "head-1"  # it was drawn anew, and the focus is where it was
    page.keyboard.press("]")
    assert pressed(page) == ["token-0", "head-2"]
    page.focus("#map-attention")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert re.search(r"→ .*: [\d.e-]+$", page.inner_text(".read"))
    assert f"step {step + 1} " in page.inner_text("#where")  # in a map the arrows stay in it
    page.focus("summary")
    page.keyboard.press("Enter")
    assert page.is_visible("details pre")
    page.focus("#step-5")
    page.keyboard.press("Space")
    assert "step 6 " in page.inner_text("#where")
    page.keyboard.press("ArrowLeft")
    assert "pass 1 " in page.inner_text("#where")
    page.keyboard.press(",")
    assert f"token-{len(seen.prompt) - 2}" in pressed(page)
    page.keyboard.press("End")
    assert page.is_disabled("#next")
    page.keyboard.press("Home")
    assert page.is_disabled("#back")


def pressed(page) -> list[str]:
    """The buttons that are down."""
    return page.evaluate("[...document.querySelectorAll('[aria-pressed=true]')].map(button => button.id)")


def test_the_picture_of_the_readme_can_be_taken_again(chromium, tmp_path):
    with quick_programs():
        html = picture.page()
    picture.take(chromium, html, tmp_path / "trace.png")
    assert 30e3 < (tmp_path / "trace.png").stat().st_size <= 300e3
    assert (tmp_path / "trace.png").read_bytes()[16:24] == bytes.fromhex("00000500 00000320")  # 1280 by 800
