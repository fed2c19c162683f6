"""Options fuzzed with wrong types and values: every verb ends well or with one line that says what was wrong."""

import contextlib
import inspect
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import search
from lit_prune.__main__ import main
from lit_prune.commands.apply import apply_to_model
from lit_prune.commands.arguments import option_types
from lit_prune.commands.bench_speed import bench_speed
from lit_prune.commands.compare import compare
from lit_prune.commands.evaluate import evaluate
from lit_prune.commands.export import write_for
from lit_prune.commands.heal import heal_model
from lit_prune.commands.prune import prune_model
from tests.tiny import character_tokenizer, tiny_model

WRONG = ("", "x", "-1", "0", "1e9", "0.5", "nan", "inf", "null", "[]", "{}", "[1, x]", "{a: 1}", "true", "../..", "[",
         "-2", "-inf", "1e-400", "9" * 20, "-" + "9" * 20, r"m$\frac{1}$x", "a\x1b[2J", "[" * 3000,
         "{a: " * 3000)  # fmt: skip
# What would take long or leave the folder of the test, and what is not about values.
LEFT_OUT = {"output", "device", "dtype", "trust_remote_code", "resume", "revision", "repeats", "new_tokens", "kwargs"}
SEARCH = "benchmarks search"
SMALL = {
    "prune": (prune_model, ["MODEL", "--amount=0.1", "--data=TEXT", "--window=16", "--num_windows=2", "--output=OUT"]),
    "apply": (apply_to_model, ["PRUNED", "MODEL", "--output=OUT"]),
    "heal": (heal_model, ["PRUNED", "--data=[TEXT]", "--window=16", "--val_windows=2", "--training.tokens=64",
                          "--output=OUT"]),
    "export": (write_for, ["PRUNED", "--format=vllm", "--output=OUT"]),
    "evaluate": (evaluate, ["PRUNED", "--texts=[TEXT]", "--window=16", "--num_windows=2", "--output=OUT"]),
    SEARCH: (search.search, ["MODEL", "--data=TEXT", "--window=16", "--num_windows=2", "--num_unseen=1",
                             "--searches=[one_shot]"]),
    "bench speed": (bench_speed, ["MODEL,PRUNED", "--prompt_tokens=4", "--new_tokens=1", "--repeats=1"]),
    "compare": (compare, ["MODEL", "--data=TEXT", "--window=16", "--num_windows=2", "--num_unseen=1", "--output=OUT",
                          "--methods=[random]", "--speed={prompt_tokens: 4, new_tokens: 1, repeats: 1}"]),
}  # fmt: skip
NESTED = {"heal": ("lora", "training"), "prune": ("refit",), "compare": ("refit",)}
PLACES = ("MODEL", "PRUNED", "TEXT")
"""Stand for files, which may be wrong as well."""


def is_option(function, name):
    """Not a positional argument; fields of dataclasses are options too."""
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is None or parameter.kind is inspect.Parameter.KEYWORD_ONLY


OPTIONS = [
    *(
        (verb, name)
        for verb, (function, _) in SMALL.items()
        for name in option_types(function, nested=NESTED.get(verb, ()))
        if name not in LEFT_OUT and is_option(function, name)
    ),
    *((verb, place) for verb, (_, arguments) in SMALL.items() for place in PLACES if place in " ".join(arguments)),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    tiny_model("llama").save_pretrained(folder / "model")
    character_tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog and runs away. " * 30)
    options = [f"--data={folder / 'text.txt'}", "--window=16", "--num_windows=2", f"--output={folder / 'pruned'}"]
    assert main(["prune", str(folder / "model"), "--amount=0.2", *options]) == 0
    return folder


def run(place, out, verb, name, value):
    names = {"MODEL": place / "model", "PRUNED": place / "pruned", "TEXT": place / "text.txt", "OUT": out}
    extra = [] if name in PLACES else [f"--{name}={value}"]
    names |= {name: value} if name in PLACES else {}
    arguments = SMALL[verb][1]
    for each_name, path in names.items():
        arguments = [each.replace(each_name, str(path)) for each in arguments]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            command = [*arguments, *extra]
            code = search.main(command) if verb == SEARCH else main([*verb.split(), *command])
        except SystemExit as stop:  # of the parser
            code = stop.code
    return code, errors.getvalue()


def require_one_clear_error(place, verb, name, value):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        code, errors = run(place, out, verb, name, value)
        assert code in (0, 2), errors
        if code == 2:
            assert "Traceback" not in errors
            assert "error: " in errors
            # Before anything was written.
            assert not [*Path(folder).iterdir()]


@settings(
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(option=st.sampled_from(OPTIONS), value=st.sampled_from(WRONG))
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_value_is_one_clear_error(place, option, value):
    require_one_clear_error(place, *option, value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("verb", "name"), OPTIONS)
def test_every_wrong_value_of_every_option(place, verb, name):
    for value in WRONG:
        require_one_clear_error(place, verb, name, value)
