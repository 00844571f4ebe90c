"""A folder that was written is the model it was written from."""

import json

import jax
import numpy as np
import pytest
import tiny
from safetensors import SafetensorError

import minillm
from minillm.checkpoint.folder_writer import write_folder
from minillm.errors import UserError


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_written_model_is_read_back_to_the_bit(family, tmp_path):
    tiny.unpacked(f"{family}_0", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    model = minillm.init(values, seed=1).model
    write_folder(tmp_path / "out", model, values, dtype="F32")
    read = minillm.load(tmp_path / "out").model
    assert jax.tree.structure(read) == jax.tree.structure(model)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(model), strict=True))


def written(tmp_path, **options):
    tiny.unpacked("llama_0", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    write_folder(tmp_path / "out", minillm.load(tmp_path).model, values | options.pop("values", {}), **options)
    return tmp_path / "out"


def test_other_files_are_written_beside_it_and_bfloat16_is_half_as_large(tmp_path):
    folder = written(tmp_path, more={"tokenizer_config.json": b"{}"})
    assert (folder / "tokenizer_config.json").read_bytes() == b"{}"
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(minillm.load(folder).model))
    assert whole / 2 < (folder / "model.safetensors").stat().st_size < whole / 2 + 5000


def test_nothing_is_overwritten_and_nothing_half_written_is_left(tmp_path):
    folder = written(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="is there already"):
        written(tmp_path)
    with pytest.raises(TypeError):
        model = minillm.load(folder).model
        values = json.loads((folder / "config.json").read_text())
        write_folder(tmp_path / "other", model, values, more={"bad": None})  # pyright: ignore[reportArgumentType]
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "error", [SafetensorError("No space left on device"), OSError(28, "No space left on device")]
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, error):
    def full(*_, **options):
        raise error

    monkeypatch.setattr("minillm.checkpoint.folder_writer.save_file", full)
    with pytest.raises(UserError, match=r"out: cannot be written: .*No space left on device"):
        written(tmp_path)
    assert not list(tmp_path.glob("*out*"))


def test_a_config_of_another_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="its config says"):
        written(tmp_path, values={"vocab_size": 5})
