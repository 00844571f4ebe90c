"""`minillm info` says what is in a checkpoint, in any kind of file, and nothing in one can steer a terminal."""

import re
from types import SimpleNamespace

import files
import pytest
from click.testing import CliRunner

import minillm
from minillm.cli import main
from minillm.cli.info import parts, spans, tokens
from minillm.cli.terminal import size
from minillm.tokenizer import Tokenizer


def info(path) -> str:
    result = CliRunner().invoke(main, ["info", str(path)], prog_name="minillm")
    assert result.exit_code == 0, result.output
    return result.stdout


def table(shown: str) -> dict[str, tuple[int, float]]:
    """Parameters and bits of each part."""
    lines = re.findall(r"^(\S.*?) +([\d,]+) +[\d.]+ .?B +([\d.]+)$", shown, re.MULTILINE)
    return {name: (int(count.replace(",", "")), float(bits)) for name, count, bits in lines}


def test_every_tensor_is_shown_and_the_parts_are_the_whole(tmp_path):
    shown = info(files.write_gguf(tmp_path / "tiny.gguf"))
    assert "llama, 2 layers" in shown
    for name in files.hf_tensors():
        assert files.gguf_name(name) in shown
    found = table(shown)
    assert found.keys() == {"embedding", "norms", "attention", "feed-forward", "all"}
    assert sum(count for count, _ in found.values()) == 2 * found["all"][0]
    assert found["all"] == (sum(array.size for array in files.hf_tensors().values()), 32)
    assert "tied to the embedding" in shown


def test_a_model_in_few_bits_says_how_many_and_still_counts_every_number(tmp_path):
    plain = table(info("tiny-moe"))
    command = ["quantize", "tiny-moe", "q4_0", "-o", str(tmp_path / "small")]
    assert CliRunner().invoke(main, command).exit_code == 0
    small = table(info(tmp_path / "small"))
    assert [count for count, _ in small.values()] == [count for count, _ in plain.values()]
    assert small["attention"][1] == 4.5  # 32 numbers of 4 bits and a float16 scale
    assert 4.5 < small["experts"][1] < 5  # their router stays
    assert small["norms"][1] == 32


@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-mamba"])
def test_the_parts_of_bundled_models_hold_every_parameter(name):
    import jax

    shapes = minillm.load(name).shapes
    found = table("\n".join(parts(shapes)))
    assert found["all"][0] == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert "mamba" in found


def test_a_tokenizer_is_described_with_what_it_adds_and_what_ends(tmp_path):
    shown = info("tiny-transformer")
    for line in (
        "tokenizer +sentencepiece, 2,048 pieces, no chat template",
        "begins with +1 '<s>'",
        "ends at +2 '</s>'",
        "remembers .* for one more, as float32",
    ):
        assert re.search(line, shown), line
    assert "a chat template" in info(files.write_gguf(tmp_path / "tiny.gguf"))
    assert re.search("tokenizer +none", info(files.write_folder(tmp_path / "folder")))


def test_the_bytes_of_the_files_are_more_than_those_of_the_tensors(tmp_path):
    path = files.write_gguf(tmp_path / "tiny.gguf")
    stored = sum(array.nbytes for array in files.hf_tensors().values())
    assert path.stat().st_size > stored
    assert re.search(f"on disk +{size(path.stat().st_size)}, of which {size(stored)} are ", info(path))


def test_no_name_can_steer_a_terminal(tmp_path):
    assert "\x1b" not in info(files.write_folder(tmp_path / "a\x1b[31mb"))
    nasty = SimpleNamespace(vocabulary=lambda: {"\x1b[2J\n": 0}, encode=lambda *_: [0])
    (_, begins, ends) = tokens(Tokenizer(nasty, ends=(0,)), SimpleNamespace(eos=()))  # pyright: ignore
    assert begins[1] == ends[1] == r"0 '\x1b[2J\n'"


def test_runs_of_layers_are_short():
    assert spans([0, 1, 2, 5]) == "0-2, 5"
