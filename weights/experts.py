"""What the experts of a bundled model are used for: recipes against scripture, layer by layer."""

from pathlib import Path

import numpy as np

from minillm.blocks.moe import expert_load
from minillm.lm import LM
from minillm.texts import SOURCES, held_out

WINDOW = 128  # tokens of each held-out text that are counted; shorter ones are left out


def expert_use(lm: LM) -> dict[str, np.ndarray]:
    """The share of each layer's choices that fall on each expert, [layers, e] by kind of text."""
    assert lm.tokenizer is not None
    use = {}
    for source in SOURCES:
        texts = [lm.tokenizer.encode(document.text) for document in held_out(source)]
        load = np.asarray(expert_load(lm.model, np.array([ids[:WINDOW] for ids in texts if len(ids) >= WINDOW])))
        use[source] = load / load.sum(axis=1, keepdims=True)
    return use


def plot_experts(use: dict[str, np.ndarray], file: Path) -> None:
    """A map of layers and experts for each kind of text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(use), figsize=(8, 3.2), layout="constrained", sharey=True)
    most, shown = max(share.max() for share in use.values()), None
    for one, (source, share) in zip(axes, use.items(), strict=True):
        shown = one.imshow(share, vmin=0, vmax=most, cmap="Blues", aspect="auto")
        one.set(title=source, xlabel="expert", xticks=range(share.shape[1]), yticks=range(share.shape[0]))
    axes[0].set_ylabel("layer")
    figure.colorbar(shown, ax=axes, label=f"share of choices ({1 / share.shape[1]:.1%} if even)")
    figure.savefig(file, dpi=110)
