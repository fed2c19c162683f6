"""The GGUF file, as llama.cpp itself reads it: probabilities after a text, and tokens one after another."""

from contextlib import nullcontext

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_prune.__main__ import main
from lit_prune.errors import ModelError
from lit_prune.export import export_model, gguf_tokenizer, llama_cpp
from lit_prune.export import gguf as gguf_module
from lit_prune.export.gguf_tokenizer import pre_tokenizer
from lit_prune.export.llama_cpp_process import server
from lit_prune.export.targets import CASES, PRE_TOKENIZERS, REST
from lit_prune.plan import SublayerId
from lit_prune.surgery import remove
from tests.tiny import character_tokenizer, tiny_model

needs_llama_cpp = pytest.mark.skipif(not llama_cpp.is_installed(), reason="xllamacpp is not installed")
TEXT = "The 3 largest cities in 2024 haven't been counted yet; they're large, said no one.\n\nAnother 12345 words.  End"
SETS = [
    [],
    ["attention.1", "mlp.2"],
    ["attention.0", "mlp.1", "attention.3"],
    ["mlp.0", "mlp.3"],
    ["attention.0", "mlp.0", "attention.1"],
]
STEPS = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(CASES + r"\p{N}{1,3}" + REST), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "qwen2": [
        pre_tokenizers.Split(Regex(CASES + r"\p{N}" + REST), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


def byte_tokenizer(kind="gpt-2"):
    """Byte-level merges learned from the text, cut as some family cuts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(STEPS[kind]) if len(STEPS[kind]) > 1 else STEPS[kind][0]
    core.decoder = decoders.ByteLevel()
    options = {"special_tokens": ["<s>", "</s>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    core.train_from_iterator([TEXT * 3, llama_cpp.QUESTION], trainers.BpeTrainer(vocab_size=380, **options))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template="{{ 1 }}")


def model_of(names, **overrides):
    # Of this seed, no two tokens are likeliest by less than what rounding moves.
    options = {"seed": 2, "vocab_size": 384, "hidden_size": 64, "head_dim": 16, "intermediate_size": 96, **overrides}
    model = tiny_model("llama", **options)
    remove(model, [SublayerId.parse(each) for each in names])
    return model


@needs_llama_cpp
@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("weights", ["f32", "q8_0"])
def test_llama_cpp_writes_the_same_tokens(names, weights, tmp_path):
    tokenizer = byte_tokenizer()
    model = model_of(names)
    file = export_model(model, tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer, weights=weights)
    tokens = tokenizer(TEXT)["input_ids"]
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    expected = model.generate(torch.tensor([tokens]), **options)[0, len(tokens) :].tolist()
    request = {"prompt": TEXT, "n_predict": 12, "temperature": 0.0, "ignore_eos": True}
    request |= {"verbose": True, "return_tokens": True}  # half a character has no place in the answer's text
    with server(file) as llama:
        answer = llama.handle_completions(request)
    found = answer["__verbose"]["tokens"]
    assert answer["usage"]["prompt_tokens"] == len(tokens)
    assert found[0] == expected[0]
    if weights == "f32":
        assert found == expected


@needs_llama_cpp
@pytest.mark.parametrize("kind", STEPS)
def test_llama_cpp_cuts_text_alike(kind, tmp_path):
    tokenizer = byte_tokenizer(kind)
    # What is likeliest after the text is compared in there, and every token of the text matters.
    file = export_model(model_of([]), tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer, weights="f32")
    with server(file) as llama:
        answer = llama.handle_completions({"prompt": TEXT, "n_predict": 1})
    assert answer["usage"]["prompt_tokens"] == len(tokenizer(TEXT)["input_ids"])


@needs_llama_cpp
@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"tie_word_embeddings": True}, "tied"),
        ({"attention_bias": True, "mlp_bias": True, "head_dim": 24, "rms_norm_eps": 0.1, "hidden_act": "swish"}, "all"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}, "linear"),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                }
            },
            "llama3",
        ),
    ],
)
def test_positions_and_tied_embeddings(overrides, name, tmp_path):
    tokenizer = byte_tokenizer()
    model = model_of(["attention.1"], **overrides)
    assert export_model(model, tmp_path / name, format="gguf", tokenizer=tokenizer, weights="f32").is_file()


@needs_llama_cpp
def test_half_a_character_may_be_likeliest(tmp_path):
    tokenizer, model = byte_tokenizer(), model_of(["mlp.1"])
    tokens = torch.tensor([tokenizer(llama_cpp.QUESTION)["input_ids"]])
    half = tokenizer.convert_tokens_to_ids("\u00ab")  # how the byte 0xAB is written, which is within a character
    with torch.no_grad():
        model.lm_head.weight[half] = model.model(tokens).last_hidden_state[0, -1]
    assert model(tokens).logits[0, -1].argmax() == half
    assert export_model(model, tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer, weights="f32").is_file()


@needs_llama_cpp
def test_what_llama_cpp_says_of_a_file_is_passed_on(tmp_path, monkeypatch, capfd):
    told = pytest.raises(ModelError, match="does not read this file: .*cannot find tokenizer merges")
    with monkeypatch.context() as patched, told:
        patched.setattr(gguf.GGUFWriter, "add_token_merges", lambda *_: None)
        export_model(model_of([]), tmp_path / "out.gguf", format="gguf", tokenizer=byte_tokenizer())
    assert "merges" not in capfd.readouterr().err
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["a\0b"])  # at which llama.cpp ends its process
    with pytest.raises(ModelError, match="does not read this file: .*ASSERT"):
        export_model(model_of([], vocab_size=400), tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer)
    assert not [*tmp_path.iterdir()]


@needs_llama_cpp
def test_a_tokenizer_without_merges(tmp_path):
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({each: number for number, each in enumerate(alphabet)}, []))
    core.pre_tokenizer, core.decoder = STEPS["gpt-2"][0], decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    assert export_model(model_of([]), tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer).is_file()


@needs_llama_cpp
def test_text_that_llama_cpp_cuts_otherwise_is_refused_unless_the_tokenizer_is_lent(tmp_path, monkeypatch):
    model, tokenizer = model_of([]), byte_tokenizer("llama-bpe")
    tokenizer.add_tokens(["<one>", " two "])
    lender = export_model(model, tmp_path / "sound.gguf", format="gguf", tokenizer=tokenizer)
    monkeypatch.setattr(gguf_tokenizer, "pre_tokenizer", lambda data: "qwen2")  # which cuts single digits
    with pytest.raises(ModelError, match=r"cuts 'The 3 .* otherwise: into \['2', .*--tokenizer_from"):
        export_model(model, tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer)
    other = export_model(model, tmp_path / "other.gguf", format="gguf", tokenizer=byte_tokenizer("qwen2"))
    with pytest.warns(UserWarning, match="cuts 'The 3 .* otherwise"):
        export_model(model, tmp_path / "warned.gguf", format="gguf", tokenizer=tokenizer, tokenizer_from=str(other))
    export_model(model, tmp_path / "lent.gguf", format="gguf", tokenizer=tokenizer, tokenizer_from=str(lender))


def test_more_tokens_than_rows_are_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(len(tokenizer), 388)])
    with pytest.raises(ModelError, match="'<387>' with the number 387, and the model has 384 rows"):
        export_model(model_of([]), tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer)
    assert not [*tmp_path.iterdir()]


def test_what_transformers_does_not_read_is_one_clear_sentence(tmp_path, capsys):
    file = export_model(model_of([]), tmp_path / "own.gguf", format="gguf", tokenizer=byte_tokenizer(), verify=False)
    assert main(["evaluate", str(file)]) == 2
    assert len(said := capsys.readouterr().err) < 300
    assert "reads no GGUF file of the architecture 'deci'; give the folder" in said


def test_chat_templates_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    fields = gguf.GGUFReader(export_model(model_of([]), tmp_path / "o.gguf", format="gguf", tokenizer=tokenizer)).fields
    found = {name: fields[f"tokenizer.chat_template{name}"].contents() for name in ("", ".tool_use")}
    assert found == {"": "{{ 1 }}", ".tool_use": "{{ 2 }}"}


@needs_llama_cpp
def test_a_file_that_llama_cpp_reads_otherwise_is_not_written(tmp_path, monkeypatch):
    tokenizer = byte_tokenizer()
    model = model_of(["mlp.1"])
    # As transformers keeps them: the rotation would turn the wrong pairs.
    monkeypatch.setattr(gguf_module, "interleaved", lambda weight, heads: weight)
    with pytest.raises(ModelError, match="llama.cpp reads the file otherwise"):
        export_model(model, tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer, weights="f32")
    assert not [*tmp_path.iterdir()]


def test_without_llama_cpp_tensors_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    tokenizer = byte_tokenizer()
    file = export_model(model_of(SETS[2]), tmp_path / "out.gguf", format="gguf", tokenizer=tokenizer)
    fields = gguf.GGUFReader(file).fields
    assert fields["general.architecture"].contents() == "deci"
    assert fields["deci.attention.head_count"].contents() == [1, 4, 4, 0]
    assert fields["deci.feed_forward_length"].contents() == [96, 32, 96, 96]
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.chat_template"].contents() == "{{ 1 }}"
    quantise = gguf.quants.quantize
    monkeypatch.setattr(gguf.quants, "quantize", lambda data, kind: quantise(data * 1.01, kind))
    with pytest.raises(ModelError, match="has other values"):
        export_model(model_of([]), tmp_path / "other.gguf", format="gguf", tokenizer=tokenizer)
    assert [each.name for each in tmp_path.iterdir()] == ["out.gguf"]


def sentence_pieces(scheme="legacy"):
    """Merges over marked words with bytes to fall back on, as in Llama 2, marked in one of transformers' ways."""
    characters = sorted(set(TEXT.replace(" ", "\u2581")) - {"q"})
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("c", "o"), ("\u2581", "l"), ("a", "r"), ("ar", "g")]
    vocabulary += ["".join(each) for each in merges]
    core = Tokenizer(
        models.BPE(
            {each: number for number, each in enumerate(vocabulary)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if scheme == "legacy":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@needs_llama_cpp
@pytest.mark.parametrize("scheme", ["legacy", "always", "first"])
def test_sentence_pieces(scheme, tmp_path):
    tokenizer = sentence_pieces(scheme)
    model = model_of(["mlp.1"])
    options = {"format": "gguf", "tokenizer": tokenizer}
    if scheme == "first":  # no space after a special token, where llama.cpp has one
        with pytest.raises(ModelError, match="llama.cpp cuts 'a<unk>a.* otherwise: into .*--tokenizer_from"):
            export_model(model, tmp_path / "out.gguf", **options)
        return
    # One space more is no other space to transformers, as it is to SentencePiece and llama.cpp.
    told = pytest.warns(UserWarning, match="cuts ' .* otherwise") if scheme == "always" else nullcontext()
    with told:
        file = export_model(model, tmp_path / "out.gguf", **options)
    with server(file) as llama:
        answer = llama.handle_completions({"prompt": TEXT + " q", "n_predict": 1})
    assert answer["usage"]["prompt_tokens"] == len(tokenizer(TEXT + " q")["input_ids"])


def test_unknown_tokenizers_are_refused_until_a_file_lends_one(tmp_path):
    model = model_of(["mlp.1"])
    with pytest.raises(ModelError, match="WordLevel.*--tokenizer_from"):
        export_model(model, tmp_path / "out.gguf", format="gguf", tokenizer=character_tokenizer())
    steps = {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"\w+"}}}
    with pytest.raises(ModelError, match="not known to cut text"):
        pre_tokenizer(steps)
    assert not [*tmp_path.iterdir()]
    lender = export_model(model, tmp_path / "a.gguf", format="gguf", tokenizer=byte_tokenizer("qwen2"))
    file = export_model(
        model, tmp_path / "b.gguf", format="gguf", tokenizer=byte_tokenizer("qwen2"), tokenizer_from=str(lender)
    )
    one, two = (
        {name: each.contents() for name, each in gguf.GGUFReader(path).fields.items() if name.startswith("tokenizer")}
        for path in (lender, file)
    )
    assert one == two
    assert one["tokenizer.ggml.pre"] == "qwen2"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": "q4_0"}, "holds matrices as f32, f16, q8_0, bf16, q3_k_m, .*, not 'q4_0'"),
        ({"tokenizer_from": "absent.gguf"}, "cannot read the GGUF file absent.gguf"),
    ],
)
def test_bad_options(options, reason, tmp_path):
    with pytest.raises(ModelError, match=reason):
        export_model(model_of([]), tmp_path / "x.gguf", format="gguf", tokenizer=byte_tokenizer(), **options)
    assert not [*tmp_path.iterdir()]


def test_positions_that_llama_cpp_does_not_know_are_refused(tmp_path):
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    with pytest.raises(ModelError, match="type yarn are not written"):
        export_model(model_of([], rope_parameters=yarn), tmp_path / "x.gguf", format="gguf", tokenizer=byte_tokenizer())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(ModelError, match="would be overwritten"):
        export_model(model_of([]), tmp_path / "x.gguf", format="gguf", tokenizer=byte_tokenizer())
    assert (tmp_path / "x.gguf").read_text() == "mine"


def test_every_family_in_the_table_is_tried():
    assert set(PRE_TOKENIZERS.values()) == set(STEPS)


@needs_llama_cpp
def test_the_verb(tmp_path, capsys):
    tokenizer = byte_tokenizer()
    folder = export_model(model_of(SETS[1]), tmp_path / "pruned", tokenizer=tokenizer)
    out = tmp_path / "model.gguf"
    assert main(["export", str(folder), "--format", "gguf", "--output", str(out), "--weights", "bf16"]) == 0
    assert f"compared with llama.cpp\nwritten: {out}" in capsys.readouterr().out
