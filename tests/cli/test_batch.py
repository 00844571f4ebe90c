"""A file of prompts: the same continuations in the same order, whatever happens on the way."""

import json
import subprocess
import sys
import time

import files
import pytest
from click.testing import CliRunner

import minillm
from minillm.batch import Job
from minillm.cli import main
from minillm.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_programs")

PROMPTS = [f"text number {i}" * (1 + i % 3) for i in range(9)]
OPTIONS = {"max_tokens": 12, "temperature": 0.8, "stop": [], "seed": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return path


def run(model, source, target, batch=3, options=OPTIONS, exact=False):
    lm = minillm.load(model)
    serving = {"exact": exact, "max_batch": batch}
    return Job(source, target, str(model), options, serving).run(lm, lm.prompt_ids)


def generate(model, *arguments):
    return CliRunner().invoke(main, ["generate", "--model", str(model), *map(str, arguments)])


def test_lines_come_out_in_the_order_of_the_prompts_as_each_is_continued_alone(model, source, tmp_path):
    target, lm = tmp_path / "out.jsonl", minillm.load(model)
    assert len(list(run(model, source, target))) == len(PROMPTS)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    for i, (prompt, line) in enumerate(zip(PROMPTS, lines, strict=True)):
        alone = lm.generate(prompt, max_tokens=12, temperature=0.8, seed=3 + i)
        assert line["tokens"] == alone.tokens
        assert line["text"] == alone.text
        assert line["prompt_tokens"] == alone.prompt_tokens
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out.jsonl"]


@pytest.mark.parametrize("results", [0, 1, 4, 8])
def test_a_run_that_stops_anywhere_goes_on_to_the_same_file(model, source, tmp_path, results):
    whole, target, part = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    list(run(model, source, whole))
    first = run(model, source, target)
    for _ in range(results):
        next(first)
    first.close()
    assert not target.exists()
    assert part.exists() == (results > 0)
    if results:
        part.write_text(part.read_text() + '{"line": 3, "te')  # cut off while it was written
    list(run(model, source, target))
    assert target.read_bytes() == whole.read_bytes()
    assert not part.exists()


@pytest.mark.parametrize(
    "left",
    [
        '{"job": "ab',  # a header that was cut off
        '{"job": "ab\u2028'.encode()[:-1].decode("latin-1"),  # and one within a character
    ],
)
def test_a_run_that_was_stopped_in_its_first_line_starts_again_and_can_be_stopped_again(
    model, source, tmp_path, left
):
    whole, target, part = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    list(run(model, source, whole))
    part.write_bytes(left.encode("latin-1"))
    first = run(model, source, target)
    next(first)
    first.close()
    assert part.read_text().startswith('{"job"')
    list(run(model, source, target))
    assert target.read_bytes() == whole.read_bytes()


def test_a_text_with_line_separators_of_unicode_can_be_gone_on_with(model, source, tmp_path):
    target, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    first = run(model, source, target)
    next(first)
    first.close()
    header, result = part.read_text().splitlines()
    line = {**json.loads(result), "text": "a\u2028b\u0085c"}
    part.write_text(header + "\n" + json.dumps(line, ensure_ascii=False) + "\n")
    list(run(model, source, target))
    assert "a\u2028b\u0085c" in target.read_text()


@pytest.mark.parametrize("left", ["hello\n", "[1]\n", '{"line": 0}\n', "\n"])
def test_a_file_that_is_not_ours_is_not_used(model, source, tmp_path, left):
    (tmp_path / "out.jsonl.part").write_text(left)
    with pytest.raises(UserError, match="is what is left of another job"):
        next(run(model, source, tmp_path / "out.jsonl"))
    assert (tmp_path / "out.jsonl.part").read_text() == left


def test_a_run_that_was_killed_between_two_results_ends_with_the_same_file(model, source, tmp_path):
    whole, target, part = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    command = [sys.executable, "-m", "minillm", "generate", "--model", str(model), "--input", str(source)]
    command += ["--max-tokens", "100", "--temperature", "0.8", "--seed", "3", "--batch", "2", "--output"]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    process = subprocess.Popen([*command, str(target)], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (part.exists() and part.read_bytes().count(b"\n") > 2):
        time.sleep(0.01)
    process.kill()
    process.wait()
    if not target.exists():  # else it was too fast
        subprocess.run([*command, str(target)], check=True, capture_output=True)
    assert target.read_bytes() == whole.read_bytes()


def test_what_is_there_is_not_overwritten(model, source, tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("mine")
    result = generate(model, "--input", source, "--output", target)
    assert result.exit_code == 2
    assert "out.jsonl is there already" in result.stderr
    assert target.read_text() == "mine"


def test_a_job_that_is_done_is_not_done_again(model, source, tmp_path):
    target = tmp_path / "out.jsonl"
    arguments = ["--input", source, "--output", target, "--max-tokens", "3"]
    assert generate(model, *arguments).exit_code == 0
    before = target.stat().st_mtime_ns
    again = generate(model, *arguments)
    assert again.exit_code == 0
    assert f"{len(PROMPTS)} continuations are in {target} already" in again.stderr
    assert target.stat().st_mtime_ns == before
    for other in (["--seed", "4"], ["--max-tokens", "4"], ["--chat"]):
        refused = generate(model, *arguments, *other)
        assert refused.exit_code == 2
        assert "is there already" in refused.stderr


def test_prompts_come_from_standard_input(model, source, tmp_path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    options = ["--max-tokens", "3", "--seed", "5"]
    command = ["generate", "--model", str(model), *options, "--input", "-", "--output", str(one)]
    assert CliRunner().invoke(main, command, input=source.read_bytes()).exit_code == 0
    assert generate(model, *options, "--input", source, "--output", other).exit_code == 0
    assert [json.loads(line)["tokens"] for line in one.read_text().splitlines()] == [
        json.loads(line)["tokens"] for line in other.read_text().splitlines()
    ]


def test_the_first_lines_that_are_wrong_are_named_together(model, tmp_path):
    source = tmp_path / "prompts.jsonl"
    source.write_text('"good"\nno json\n3\n"good"\n{"prompt": "a", "seed": true}\n[]\n[]\n')
    result = generate(model, "--input", source, "--output", tmp_path / "out.jsonl")
    assert result.exit_code == 2
    for words in ("prompts.jsonl, line 2: no JSON", "; line 3: no prompt", "line 5: seed is true", "and 2 more"):
        assert words in result.stderr
    source.write_text('"good"\n""\n{"prompt": "a", "temperature": -1}\n""\n')
    result = generate(model, "--input", source, "--output", tmp_path / "out.jsonl")
    assert "line 2: the prompt is empty" in result.stderr
    assert "line 4: the prompt is empty" in result.stderr


def test_two_runs_do_not_write_one_file(model, source, tmp_path):
    target = tmp_path / "out.jsonl"
    first = run(model, source, target)
    next(first)
    with pytest.raises(UserError, match="is being written by another run"):
        next(run(model, source, target))
    assert len(list(first)) == len(PROMPTS) - 1


def test_what_another_job_left_is_not_used(model, source, tmp_path):
    target = tmp_path / "out.jsonl"
    first = run(model, source, target)
    next(first)
    first.close()
    with pytest.raises(UserError, match="is what is left of another job"):
        next(run(model, source, target, options={**OPTIONS, "seed": 4}))
    assert (tmp_path / "out.jsonl.part").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 2: no JSON"),
        ("3", "line 2: no prompt"),
        ('{"prompt": ["a"]}', "line 2: no prompt"),
        ('{"prompt": "a", "colour": 1}', "line 2: 'colour' is no option, expected prompt and frequency_penalty"),
        ('{"prompt": "a", "max_tokens": 0}', "line 2: max_tokens is 0, expected 1 or more"),
        ('{"prompt": "a", "temperature": -1}', "line 2: temperature is -1"),
        ('{"prompt": "a", "stop": 5}', "line 2: a stop string is empty or no string"),
        ('{"prompt": "a", "seed": true}', "line 2: seed is true, expected no true or false"),
        ("[" * 100_000, "line 2: no JSON"),
        ('{"prompt": ""}', "line 2: the prompt is empty"),
        ('"' + "a" * 500 + '"', "line 2: the prompt has 500 tokens"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_done(model, tmp_path, line, message):
    source, target = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    source.write_text(f'"good"\n{line}\n')
    result = generate(model, "--input", source, "--output", target)
    assert result.exit_code == 2
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x"], "--input and --output come together"),
        (["--input", "x"], "--input and --output come together"),
        (["--input", "x", "--output", "y", "hello"], "PROMPT does not go with --input"),
        (["--input", "x", "--output", "y", "--json"], "--json does not go with --input"),
        (["--input", "x", "--output", "y", "--draft", "ngram"], "--draft does not go with --input"),
        (["--input", "x", "--output", "y", "--logprobs", "1"], "--logprobs does not go with --input"),
        (["hello", "--batch", "4"], "--batch does not go without --input"),
        (["hello", "--lossy"], "--lossy lets --cache h2o:N go with other options"),
        (["--input", "x", "--output", "y", "--lossy", "--cache", "int8"], "--lossy lets --cache h2o:N"),
        (["--input", "nowhere", "--output", "y"], "No such file or directory: nowhere"),
        (["--input", __file__, "--output", "."], "the output is '.', expected the name of a file"),
        (["--input", __file__, "--output", "y", "--seed", "-5"], "seed is -5, expected 0 to 4294967295"),
    ],
)
def test_options_that_do_not_go_together_are_named(model, arguments, message):
    result = generate(model, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
