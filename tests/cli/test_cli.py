import json
import signal
import subprocess
import sys
import time

import click.testing
import files
import pytest

import minillm
from minillm.cli import main
from minillm.cli.terminal import printable
from minillm.evaluate.logprobs import log_probs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(files.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def run(*arguments: str, stdin: str | bytes | None = None):
    return click.testing.CliRunner().invoke(main, arguments, input=stdin, prog_name="minillm")


def generate(tiny, *arguments: str, stdin: str | bytes | None = None):
    return run("generate", "--model", tiny, "--max-tokens", "8", "--seed", "1", *arguments, stdin=stdin)


def assert_refused(result, *words: str) -> None:
    """Exit code 2 and one line without a traceback that has the words in it."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def test_without_a_command_three_doors_open():
    result = run()
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ") and line[2] != " "] == [
        "learn",
        "run",
        "judge",
    ]


def test_a_pipe_gets_the_continuation_and_nothing_else(tiny):
    result = generate(tiny, "hello", "--temperature", "0")
    assert result.exit_code == 0
    assert result.stderr == ""
    expected = json.loads(generate(tiny, "hello", "--temperature", "0", "--json").stdout)["text"]
    assert result.stdout == expected + "\n"


def test_json_is_one_object_with_the_promised_keys(tiny):
    out = json.loads(generate(tiny, "hello", "--json").stdout)
    promised = {"text", "tokens", "prompt_tokens", "finish_reason", "ttft_s", "prefill_tok_s"}
    assert promised | {"decode_tok_s", "compile_s", "seed"} == set(out)
    assert out["prompt_tokens"] == 5
    assert out["seed"] == 1


def test_logprobs_are_a_json_object_a_token(tiny):
    plain = json.loads(generate(tiny, "hello", "--json").stdout)
    lines = [json.loads(line) for line in generate(tiny, "hello", "--logprobs", "2").stdout.splitlines()]
    assert [one["id"] for one in lines] == plain["tokens"]
    assert json.loads(generate(tiny, "hello", "--logprobs", "2", "--json").stdout)["logprobs"] == lines
    lm = minillm.load(tiny)
    assert lm.tokenizer
    ids = lm.prompt_ids("hello")
    found = log_probs(lm.model, ids, plain["tokens"], 2)
    for line, one in zip(lines, found, strict=True):
        assert line.keys() == {"token", "id", "logprob", "top"}
        assert line["logprob"] == one.logprob
        assert [(other["id"], other["logprob"]) for other in line["top"]] == one.top
        assert all(other["token"] == lm.tokenizer.decode([other["id"]]) for other in line["top"])


def test_in_half_of_the_bits_a_text_comes_too(tiny):
    narrow = json.loads(generate(tiny, "hello", "--json", "--dtype", "bfloat16").stdout)
    assert len(narrow["tokens"]) == 8


def test_with_a_drafter_the_text_is_the_same_and_json_says_what_it_did(tiny):
    plain = json.loads(generate(tiny, "hello", "--json").stdout)
    drafted = json.loads(generate(tiny, "hello", "--json", "--draft", "ngram").stdout)
    assert drafted["text"] == plain["text"]
    assert set(drafted) - set(plain) >= {"draft_passes", "plain_steps", "tokens_per_pass", "kept_by_place"}
    exact, drafted = (
        json.loads(generate(tiny, "hello", "--json", "--exact", *more).stdout)
        for more in ([], ["--draft", "ngram"])
    )
    assert exact["tokens"] == drafted["tokens"]


def test_a_drafter_that_is_none_is_refused_in_a_line(tiny):
    result = generate(tiny, "hello", "--draft", "guess")
    assert result.exit_code == 2
    assert "draft is 'guess', expected prompt-lookup, ngram, skip:K or a model" in result.stderr


def test_standard_input_is_a_prompt(tiny):
    given = generate(tiny, "hello", "--json").stdout
    for result in (generate(tiny, "-", "--json", stdin="hello"), generate(tiny, "--json", stdin="hello")):
        assert json.loads(result.stdout)["tokens"] == json.loads(given)["tokens"]


def test_chat_uses_the_checkpoints_template(tiny):
    out = json.loads(generate(tiny, "hello", "--chat", "--json").stdout)
    assert out["prompt_tokens"] == len("user hello") + 2


def test_every_stop_string_counts(tiny):
    whole = json.loads(generate(tiny, "hello", "--json").stdout)["text"]
    out = json.loads(generate(tiny, "hello", "--json", "--stop", "never", "--stop", whole[3]).stdout)
    assert out["finish_reason"] == "stop"
    assert out["text"] == whole[: whole.index(whole[3])]


def test_stats_compare_with_the_memorys_bandwidth(tiny):
    result = generate(tiny, "hello", "--stats")
    assert result.exit_code == 0
    assert "GB/s" in result.stderr
    assert "% of the" in result.stderr


def test_bad_options_and_prompts_are_refused_in_one_line(tiny, tmp_path):
    assert_refused(generate(tiny, "hello", "--temperature", "warm"), "--temperature", "warm")
    assert_refused(generate(tiny, "hello", "--colour"), "--colour")
    assert_refused(run("generte"), "generte")
    assert_refused(generate(tiny, ""), "prompt is empty")
    assert_refused(generate(tiny, "x" * 500), "500 tokens", "128")
    assert_refused(generate(tiny, "hello", "--temperature", "-1"), "temperature is -1.0")
    assert_refused(generate(tiny, "-", stdin=b"caf\xe9"), "not UTF-8", "byte 3")
    assert_refused(generate(tiny, stdin=b""), "standard input is empty")
    assert_refused(generate(tiny, "-", stdin=b"\n"), "standard input is empty")
    assert_refused(generate(tiny, "hello", "--dtype", "float16"), "dtype is 'float16'", "float32 or bfloat16")
    assert_refused(generate(tiny, "hello", "--dtype", "bfloat16", "--quant", "q8_0"), "--quant", "--dtype")
    assert_refused(generate(tiny, "hello", "--logprobs", "2", "--cache", "int8"), "--logprobs", "--cache")
    assert_refused(generate(tiny, "hello", "--logprobs", "-1"), "--logprobs")
    assert_refused(run("generate", "--model", str(tmp_path / "none.gguf"), "x"), "none.gguf", "neither a file")
    assert_refused(run("generate", "--model", str(tmp_path), "x"), "config.json")
    assert_refused(run("info", "smollm3"), "smollm3", "smollm2-135m")
    assert_refused(run("pull", "smollm3"), "smollm3", "smollm2-135m")
    folder = files.write_folder(tmp_path / "no-tokenizer")
    assert_refused(run("generate", "--model", str(folder), "x"), "no tokenizer")
    assert_refused(run("generate", "--model", str(folder), "--chat", "x"), "no tokenizer")


def test_text_of_a_damaged_file_cannot_break_the_one_line(tiny, tmp_path):
    config = files.CONFIG | {"model_type": "a\nb\x1b[31m" + "c" * 9999}
    assert_refused(run("info", str(files.write_folder(tmp_path / "odd", config=config))), "model_type")
    assert "\x1b" not in run("info", str(tmp_path / "odd")).stderr
    assert len(run("info", str(tmp_path / "odd")).stderr) < 600
    assert_refused(run("info", "x" * 5000), "neither a file")


def test_a_model_that_was_not_pulled_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    assert_refused(run("info", "smollm2-135m"), "minillm pull smollm2-135m")


def test_a_folder_without_a_template_refuses_to_chat(tiny, monkeypatch):
    monkeypatch.setattr("files.TEMPLATE", "{{ raise_exception('users must not speak') }}")
    path = files.write_gguf(type(tiny)(tiny) + ".refuses.gguf")
    assert_refused(run("generate", "--model", str(path), "--chat", "x"), "users must not speak")


def test_text_for_a_terminal_cannot_steer_it():
    assert printable("a\x1b[2Jb\n\tc\x07\x9b1md\x7f é🙂") == "a[2Jb\n\tc1md é🙂"


def spawn(*arguments: str) -> subprocess.Popen:
    """A process that hears Ctrl-C even if the tests themselves were started deaf to it, in the background."""
    hear = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{hear}; runpy.run_module('minillm', run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_ctrl_c_ends_with_the_text_so_far_and_no_traceback(tmp_path, monkeypatch):
    monkeypatch.setitem(files.CONFIG, "max_position_embeddings", 1 << 20)
    endless = str(files.write_gguf(tmp_path / "endless.gguf"))
    process = spawn("generate", "--model", endless, "--max-tokens", "1000000", "hello", "--temperature", "0")
    assert process.stdout
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""
    assert (first + rest).endswith(b"\n")


def test_ctrl_c_while_starting_leaves_no_traceback(tiny):
    process = spawn("generate", "--model", tiny, "--max-tokens", "4000", "hello")
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert b"Traceback" not in err, err.decode()


def test_help_does_not_import_jax():
    script = "import sys; sys.argv = ['minillm', '--help']\nfrom minillm.cli import main\n"
    script += "try: main()\nexcept SystemExit: print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("False")


def test_a_reader_that_closes_the_pipe_is_not_an_error(tiny):
    process = spawn("generate", "--model", tiny, "--max-tokens", "100", "hello")
    assert process.stdout
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), ImportError("no"), ValueError("other")])
def test_ctrl_c_is_known_behind_what_libraries_make_of_it(cause):
    from minillm.cli import interrupted

    try:
        try:
            raise cause
        except BaseException:
            raise ImportError("cannot be imported")  # noqa: B904
    except ImportError as error:
        assert interrupted(error) == isinstance(cause, KeyboardInterrupt)
