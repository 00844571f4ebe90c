import json
import re
import signal
import subprocess
import sys

import click.testing
import files
import pytest
from click import Context, Option

import minillm
from minillm.cli import main
from minillm.cli.terminal import printable
from minillm.evaluate.logprobs import log_probs

pytestmark = pytest.mark.usefixtures("quick_programs")


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


def test_without_a_command_four_doors_open():
    result = run()
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ") and line[2] != " "] == [
        "learn",
        "run",
        "judge",
        "plan",
    ]


def test_a_pipe_gets_the_continuation_and_nothing_else(tiny):
    result = generate(tiny, "hello", "--temperature", "0")
    assert result.exit_code == 0
    assert result.stderr == ""
    expected = json.loads(generate(tiny, "hello", "--temperature", "0", "--json").stdout)["text"]
    assert result.stdout == expected + "\n"


def test_options_have_the_names_that_fingers_know(tiny):
    said = generate(tiny, "hello", "--temperature", "0").stdout
    assert run("generate", "-m", tiny, "-n", "8", "--temp", "0", "-p", "hello").stdout == said
    assert_refused(generate(tiny, "hello", "-p", "hello"), "PROMPT does not go with --prompt")


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
    assert_refused(run("generte"), "No such command 'generte'; minillm --help shows what there is")
    assert_refused(run("-v"), "No such option '-v'; minillm --help shows what there is")
    assert_refused(run("list", "-v"), "No such option '-v'; minillm list --help shows what there is")
    assert_refused(generate(tiny, "hello", "you"), 'extra argument (you), as in: minillm generate "Recipe')
    assert_refused(generate(tiny, ""), "prompt is empty")
    assert_refused(generate(tiny, "x" * 500), "500 tokens", "128")
    assert_refused(generate(tiny, "hello", "--temperature", "-1"), "temperature is -1.0")
    assert_refused(generate(tiny, "-", stdin=b"caf\xe9"), "not UTF-8", "byte 3")
    assert_refused(generate(tiny, stdin=b""), "standard input is empty")
    assert_refused(generate(tiny, "-", stdin=b"\n"), "standard input is empty")
    assert_refused(generate(tiny, "hello", "--dtype", "float16"), "'float16' is not one of 'float32', 'bfloat16'")
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


def test_what_a_command_lacks_is_named_with_an_example():
    missing = "minillm: Missing argument 'MODEL', as in: minillm tokenize tiny-transformer \"Recipe: Tomato Soup\""
    assert run("tokenize").stderr == missing + "\n"
    assert_refused(run("trace", "x"), "--output", 'as in: minillm trace "Recipe: Tomato Soup" -o trace.html')


def test_help_explains_the_options_used_often_and_names_the_others_that_help_all_explains():
    short, whole = (run("generate", option).stdout for option in ("--help", "--help-all"))
    command = main.get_command(Context(main), "generate")
    assert command
    for option in (max(one.opts, key=len) for one in command.params if isinstance(one, Option)):
        assert option in short
        assert re.search(rf"^  (-\w, )?{option}.*  \w", whole, re.MULTILINE), option
    assert "--top-p P" in whole
    assert "--top-p P" not in short


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


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """The words of a command that has no end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(files.CONFIG, "max_position_embeddings", 1 << 20)
        model = str(files.write_gguf(tmp_path_factory.mktemp("endless") / "endless.gguf"))
    return "generate", "--model", model, "--max-tokens", "1000000", "hello", "--temperature", "0"


def test_ctrl_c_ends_with_the_text_so_far_and_no_traceback(endless):
    process = spawn(*endless)
    assert process.stdout
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""
    assert (first + rest).endswith(b"\n")


IMPORTING = """
import signal, sys, xml.dom
from minillm.cli.terminal import no_ctrl_c_in_imports

sys.path.insert(0, sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
with no_ctrl_c_in_imports():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("heard")
    here = "_handle_fromlist"
    sys.setprofile(lambda frame, *_: frame.f_code.co_name == here and signal.raise_signal(signal.SIGINT))
    try:
        from xml import dom
    except KeyboardInterrupt:
        print("heard")
    sys.setprofile(None)
    import stopped
"""


def test_ctrl_c_within_an_import_ends_the_process_whatever_the_module_would_make_of_it(tmp_path):
    (tmp_path / "stopped.py").write_text(
        "import signal\ntry: signal.raise_signal(2)\nexcept BaseException: print(1)"
    )
    command = [sys.executable, "-c", IMPORTING, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "heard\nheard\n", "")


def test_help_does_not_import_jax():
    script = "import sys; sys.argv = ['minillm', '--help']\nfrom minillm.cli import main\n"
    script += "try: main()\nexcept SystemExit: print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip().endswith("False")


def test_a_reader_that_closes_the_pipe_is_not_an_error(endless):
    process = spawn(*endless)
    assert process.stdout
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
