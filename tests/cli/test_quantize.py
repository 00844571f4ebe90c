"""`minillm quantize`: what it writes loads again, says what it took, and is whole or not there."""

import files
import pytest
from click.testing import CliRunner

import minillm
from minillm.cli import main
from minillm.compress import methods
from minillm.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("a mill stands where two rivers meet, and nobody remembers who built it. " * 120)
    return path


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["quantize", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_folder_becomes_a_smaller_folder_that_generates(tmp_path):
    code, said = run("tiny-draft", "int4-g32,embed=q8_0", "-o", tmp_path / "small")
    assert code == 0
    assert "int4-g32,embed=q8_0: 6." in said
    assert f"MB in {tmp_path / 'small'}" in said
    lm = minillm.load(tmp_path / "small")
    assert lm.tokenizer is not None
    there = {file.name for file in (tmp_path / "small").iterdir()}
    assert there == {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"}
    in_memory, _ = minillm.load("tiny-draft").quantize("int4-g32,embed=q8_0")
    tokens = [[1, 5, 9, 200]]
    assert (lm.logits(tokens) == in_memory.logits(tokens)).all()


def test_a_gguf_file_becomes_one_with_its_tokenizer(tmp_path):
    source = files.write_gguf(tmp_path / "tiny.gguf")
    code, said = run(source, "f16,qkv=keep", "-o", tmp_path / "small.gguf")
    assert code == 0, said
    one, other = minillm.load(source), minillm.load(tmp_path / "small.gguf")
    assert one.tokenizer is not None
    assert other.tokenizer is not None
    assert one.tokenizer.encode("a mill") == other.tokenizer.encode("a mill")


def test_a_folder_becomes_a_gguf_file_with_its_tokenizer_and_no_file_a_folder(tmp_path):
    code, said = run("tiny-draft", "f16", "-o", tmp_path / "small.gguf")
    assert code == 0, said
    one, other = minillm.load("tiny-draft"), minillm.load(tmp_path / "small.gguf")
    assert one.tokenizer is not None
    assert other.tokenizer is not None
    text = "a mill</s> and\ntwo  rivers é"
    assert one.tokenizer.encode(text) == other.tokenizer.encode(text)
    assert (one.tokenizer.ends, one.config.eos) == (other.tokenizer.ends, other.config.eos)
    code, said = run(tmp_path / "small.gguf", "f16", "-o", tmp_path / "folder")
    assert code == 2
    assert "the model comes as a file; expected a name that ends in .gguf" in " ".join(said.split())


def test_a_calibrated_run_that_is_stopped_goes_on_and_leaves_nothing_but_the_model(tmp_path, text, monkeypatch):
    target = tmp_path / "small"
    arguments = ("tiny-draft", "gptq:int4-g32,embed=int8", "--text", text, "-o", target)
    found = methods.Calibrated.found

    def stopped(self, place, *given):
        if place == "blocks[3].up":
            raise UserError("stopped")
        return found(self, place, *given)

    monkeypatch.setattr(methods.Calibrated, "found", stopped)
    assert run(*arguments)[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["small.part"]
    monkeypatch.setattr(methods.Calibrated, "found", found)
    code, _ = run(*arguments)
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny-draft", "int5", "-o", "out"), "recipe is 'int5', expected one of"),
        (("tiny-draft", "int8,dwon=int4", "-o", "out"), "no matrix is called 'dwon', expected one of embed, qkv"),
        (("tiny-draft", "gtpq:int4", "-o", "out"), "method is 'gtpq', expected one of gptq, awq, smooth, imatrix"),
        (("tiny-draft", "int8", "-o", "out.gguf"), "coded as no type of GGUF files; choose another recipe"),
        (("tiny-draft", "int8", "-o", "."), "is there already"),
        (("tiny-draft", "int8", "--text", "none.txt", "-o", "out"), "none.txt"),
        (("tiny-draft", "int8", "--text", "TEXT", "-o", "out"), "looks at no text, expected METHOD:RECIPE"),
        (("nowhere", "int8", "-o", "out"), "neither a file, a folder nor a known name"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_written(arguments, message, tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = run(*(text if one == "TEXT" else one for one in arguments))
    assert code == 2
    assert message in " ".join(said.split())
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_in_few_bits_is_not_made_so_again(tmp_path):
    run("tiny-draft", "int8", "-o", tmp_path / "small")
    code, said = run(tmp_path / "small", "int4", "-o", tmp_path / "smaller")
    assert code == 2
    assert "is in few bits already, expected the model that it was made from" in said
    assert not (tmp_path / "smaller").exists()
