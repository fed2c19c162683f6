"""docs/design/security.md, fact by fact: files of strangers that would leave a marker if any of their code ran."""

import json
import os
import pickle
import re
import shutil
import sys
import zlib
from html.parser import HTMLParser

import pytest
import torch
import torch.distributed.checkpoint as distributed
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_prune import LitCausalLM, PrunePlan, load, load_tokenizer
from lit_prune.__main__ import main
from lit_prune.errors import DataError, LitPruneError, ModelError, PlanError
from lit_prune.export import save
from lit_prune.loading.models import skeleton
from lit_prune.loading.untrusted import require_plain_metadata
from lit_prune.measure import Journal
from lit_prune.plan import MAX_BLOCKS, Candidate, ModelFacts, PruneStep, SublayerId
from lit_prune.report import Answer, answer_markdown, read_summary
from lit_prune.report.page import read_sources
from lit_prune.surgery import remove
from lit_prune.training import read_facts
from tests.tiny import character_tokenizer, tiny_model

MODULE = "a_strangers_module"
CODE = """
import pathlib
pathlib.Path({marker!r}).mkdir(exist_ok=True)
from transformers import LlamaConfig, LlamaForCausalLM as Stock, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "unheard_of"
class LlamaForCausalLM(Stock):
    pass
class Tokens(PreTrainedTokenizerFast):
    pass
def generate(*args, **kwargs):
    pass
"""
SPEED = "--speed={prompt_tokens: 8, new_tokens: 2, repeats: 1}"
SMALL = ["--window=16", "--device=cpu"]
VERBS = {
    "inspect": [],
    "prune": ["--output=OUT", "--data=TEXT", "--amount=0.2", "--num_windows=4", *SMALL],
    "heal": ["--output=OUT", "--data=[TEXT]", "--distill=false", "--training.tokens=64", "--val_windows=4", *SMALL],
    "evaluate": ["--texts=[TEXT]", "--output=OUT", "--num_windows=4", *SMALL],
    "analyse": ["--data=TEXT", "--output=OUT", "--num_windows=2", *SMALL],
    "compare": ["--data=TEXT", "--output=OUT", "--methods=[nri]", "--amounts=[0.2]", "--num_windows=2", SPEED, *SMALL],
    "export": ["--format=hf-remote-code", "--output=OUT"],
    "report": ["--output=OUT.html"],
}
"""What reads a model, and what it wants behind the model."""


class Evil:
    """Its unpickling would make a folder."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What nothing may make: neither a pickle, nor the module that anybody could import."""
    path = tmp_path / "marker"
    (tmp_path / f"{MODULE}.py").write_text(CODE.format(marker=str(path)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield path
    assert MODULE not in sys.modules
    assert not path.exists(), "a stranger's code ran"


@pytest.fixture
def pruned(tmp_path):
    """A folder that lit-prune wrote, with a plan; without checksums, which keep nobody from changing it."""
    model = tiny_model("llama")
    facts = ModelFacts("llama", 4, 32, sum(each.numel() for each in model.parameters()), name="nobody/nothing")
    gone = remove(model, [SublayerId(1, "mlp")])
    plan = PrunePlan(facts).with_step(PruneStep(Candidate.parse("mlp.1"), gone))
    folder = save(model, tmp_path / "pruned", tokenizer=character_tokenizer(), plan=plan)
    (folder / "weights.sha256").unlink()
    data = json.loads((folder / "prune_plan.json").read_text())
    del data["sha256"]
    (folder / "prune_plan.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def verb(tmp_path, text):
    """Run a verb on a model; the exit code."""

    def run(name, model):
        arguments = [each.replace("OUT", str(tmp_path / "out")).replace("TEXT", str(text)) for each in VERBS[name]]
        return main([name, str(model), *arguments])

    return run


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_pickled_weights(folder, marker):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil(marker)}, folder / "pytorch_model.bin")
    return folder


def with_code(folder, marker, *, known):
    """Names its own files wherever transformers lets a folder name some; of a type that transformers knows or not."""
    for name in ("strange.py", "modeling_lit_prune.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(CODE.format(marker=str(marker)))
    files = {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "modeling_lit_prune.LlamaForCausalLM"}
    edit(folder / "config.json", auto_map=files, **({} if known else {"model_type": "unheard_of"}))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["strange.Tokens", None]})
    return folder


# Pickles


@pytest.mark.parametrize("name", [each for each in VERBS if each not in ("inspect", "report")])
def test_pickled_weights_run_nothing(name, pruned, marker, verb, capsys):
    assert verb(name, with_pickled_weights(pruned, marker)) == 2
    assert "more than tensors" in capsys.readouterr().err


def test_pickled_weights_are_not_wanted_for_a_look(pruned, marker, verb):
    assert verb("inspect", with_pickled_weights(pruned, marker)) == 0
    assert verb("report", pruned) == 0


def test_loaders_of_transformers_run_no_pickle_either(pruned, marker):
    with_pickled_weights(pruned, marker)
    with pytest.raises(pickle.UnpicklingError):
        AutoModelForCausalLM.from_pretrained(pruned)


def test_pickled_weights_of_tensors_alone_are_read(model_folder):
    tensors = load_file(model_folder / "model.safetensors")
    (model_folder / "model.safetensors").unlink()
    torch.save(tensors, model_folder / "pytorch_model.bin")
    assert torch.equal(load(model_folder).lm_head.weight, tensors["lm_head.weight"])


def test_an_adapter_in_the_folder_runs_nothing(model_folder, tmp_path, marker):
    adapter = shutil.copytree(model_folder, tmp_path / "adapter")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(model_folder), "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    torch.save({"weight": Evil(marker)}, adapter / "adapter_model.bin")
    with pytest.raises(ModelError):
        load(adapter)
    settings |= {"megatron_config": {"a": 1}, "megatron_core": MODULE}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError):
        load(adapter)


# Checkpoints


@pytest.fixture
def checkpoint(tmp_path, model_folder):
    """A checkpoint of `fit` with changes."""

    def make(**changes):
        module = LitCausalLM(str(model_folder))
        settings = {**module.hparams, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
        data = {"state_dict": module.state_dict(), "hyper_parameters": settings, "pytorch-lightning_version": "2.6.0"}
        data["lit_prune"] = {"removed": [], "lora": None}
        for name, value in changes.items():
            data[name] = {**data[name], **value} if isinstance(data.get(name), dict) else value
        torch.save(data, tmp_path / "strange.ckpt")
        return tmp_path / "strange.ckpt"

    return make


@pytest.fixture
def validate(model_folder, text, tmp_path, monkeypatch):
    """`lit-prune validate` with a checkpoint; the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-prune"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of Lightning's own calls
    text.write_text("\n\n".join(["the quick brown fox jumps over the lazy dog. " * 5] * 30))
    trainer = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    settings = [f"--model.model={model_folder}", f"--data.source={text}", "--data.window=16", *trainer]
    settings += ["--trainer.limit_val_batches=1", "--seed_everything=1"]
    return lambda path, *more: main(["validate", *settings, f"--ckpt_path={path}", *more])


def test_a_checkpoint_is_read_without_running_it(checkpoint, validate, marker, capsys):
    assert validate(checkpoint()) == 0
    assert validate(checkpoint(more=Evil(marker))) == 2
    assert "more than tensors" in capsys.readouterr().err
    with pytest.raises(pickle.UnpicklingError):
        LitCausalLM.load_from_checkpoint(checkpoint(more=Evil(marker)))


def test_a_checkpoint_gives_no_leave_to_run_code(checkpoint, validate, model_folder, tmp_path, marker):
    strange = with_code(shutil.copytree(model_folder, tmp_path / "strange"), marker, known=False)
    path = checkpoint(hyper_parameters={"model": str(strange), "trust_remote_code": True})
    assert validate(path) == 2
    # Leave for the model that the user names is none for the one that the checkpoint names.
    assert validate(path, "--model.trust_remote_code=true") == 2
    with pytest.raises(ModelError, match="contains custom code"):
        LitCausalLM.load_from_checkpoint(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"class_path": f"{MODULE}.LlamaForCausalLM", "init_args": {}}},
        {"layout": {"attention": {"class_path": f"{MODULE}.Config"}}},
        {"_class_path": f"{MODULE}.LlamaForCausalLM"},
    ],
)
def test_a_checkpoint_names_no_classes(checkpoint, validate, marker, settings, capsys):
    assert validate(checkpoint(hyper_parameters=settings)) == 2
    assert "name classes to import" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"model": {"class_path": f"{MODULE}.LlamaForCausalLM", "init_args": {}}},
        {"_instantiator": f"{MODULE}.generate", "model": 5},
    ],
)
def test_load_from_checkpoint_imports_nothing(checkpoint, marker, settings):
    with pytest.raises(ModelError, match="expected the name of a model"):
        LitCausalLM.load_from_checkpoint(checkpoint(hyper_parameters=settings))


def test_a_checkpoint_from_a_url_is_read_like_a_file(monkeypatch):
    told = []

    def fetched(url, **options):
        told.append(options["weights_only"])
        raise LitPruneError("enough")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetched)
    with pytest.raises(LitPruneError, match="enough"):
        LitCausalLM.load_from_checkpoint("http://127.0.0.1:9/strange.ckpt")
    assert told == [True]


@pytest.mark.parametrize(
    "structure",
    [
        {"removed": ["mlp.99999999999"]},
        {"removed": 5},
        {"lora": {"rank": "eight"}},
        {"lora": {MODULE: 1}},
        {"lora": [1]},
    ],
)
def test_a_checkpoint_with_a_damaged_structure_is_one_clear_error(checkpoint, structure):
    with pytest.raises(LitPruneError, match=r"is damaged|no model with a block"):
        LitCausalLM.load_from_checkpoint(checkpoint(lit_prune=structure))


def test_metadata_of_a_distributed_checkpoint_is_torchs_own(tmp_path, marker, validate, model_folder, capsys):
    with pytest.warns(UserWarning, match="single process"):
        distributed.save({"a": {"b": torch.ones(2, 3, dtype=torch.bfloat16), "c": 5}}, checkpoint_id=tmp_path / "good")
    require_plain_metadata(tmp_path / "good")
    require_plain_metadata(tmp_path / "nowhere")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / ".metadata").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(ModelError, match=r"it names (posix|nt)\.mkdir"):
        require_plain_metadata(bad)
    assert validate(bad) == 2
    assert "no metadata of a distributed checkpoint" in capsys.readouterr().err
    with pytest.raises(ModelError, match="it names"):
        read_facts(bad)
    (bad / ".metadata").write_bytes(b"cpathlib._local\nPosixPath\n.")
    if sys.version_info < (3, 13):
        with pytest.raises(ModelError, match="Python 3.13 wrote it"):
            require_plain_metadata(bad)
    else:
        require_plain_metadata(bad)
    (bad / ".metadata").write_bytes(pickle.dumps(Evil(marker)))
    # What torch does with it, without the check.
    with pytest.raises(AttributeError):
        distributed.FileSystemReader(bad).read_metadata()
    marker.rmdir()


# Code in a folder


@pytest.mark.parametrize("known", [True, False], ids=["known type", "unheard of"])
@pytest.mark.parametrize("name", VERBS)
def test_code_in_a_folder_is_not_run(name, known, pruned, marker, verb):
    code = verb(name, with_code(pruned, marker, known=known))
    # The page says how the model is used, where that can be known. A model of a known type has a stock class.
    assert code == (0 if name == "report" or known else 2)


@pytest.mark.parametrize("known", [True, False], ids=["known type", "unheard of"])
def test_loaders_of_transformers_run_no_code_for_a_folder_that_claims_to_be_ours(known, pruned, marker):
    with_code(pruned, marker, known=known)
    if known:
        model = AutoModelForCausalLM.from_pretrained(pruned, trust_remote_code=False)
        assert type(model).__module__.startswith("transformers.models.")
        assert AutoTokenizer.from_pretrained(pruned, trust_remote_code=False).vocab_size
    else:
        with pytest.raises(ValueError, match="custom code"):
            AutoModelForCausalLM.from_pretrained(pruned, trust_remote_code=False)


def test_the_marker_works(pruned, tmp_path, monkeypatch):
    # With leave, the same folder's code runs: the tests above would see it.
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with_code(pruned, tmp_path / "run", known=True)
    load_tokenizer(pruned, trust_remote_code=True)
    assert (tmp_path / "run").exists()


def test_an_export_runs_no_code_that_the_model_was_not_allowed_to(pruned, tmp_path, marker, verb):
    other = tmp_path / "other"
    other.mkdir()
    (other / "strange.py").write_text(CODE.format(marker=str(marker)))
    edit(pruned / "config.json", auto_map={"AutoConfig": f"{other}--strange.Config"})
    assert verb("export", pruned) == 0
    files = json.loads((tmp_path / "out/config.json").read_text())["auto_map"]
    assert files == {"AutoModelForCausalLM": "modeling_lit_prune.LlamaForCausalLM"}


def test_leave_for_a_folder_is_none_for_what_its_plan_names(pruned, model_folder, tmp_path, marker, text, capsys):
    dense = with_code(shutil.copytree(model_folder, tmp_path / "strange"), marker, known=False)
    plan = json.loads((pruned / "prune_plan.json").read_text())
    plan["model"]["name"] = str(dense)
    (pruned / "prune_plan.json").write_text(json.dumps(plan))
    options = [f"--output={tmp_path / 'out'}", f"--data=[{text}]", "--training.tokens=64", *SMALL]
    assert main(["heal", str(pruned), "--trust_remote_code=true", *options]) == 2
    assert "give it as --dense" in capsys.readouterr().err


def test_a_chat_template_stays_in_its_sandbox(model_folder, tmp_path, marker, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("who?")
    words = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (model_folder / "chat_template.jinja").write_text(words)
    options = [f"--prompts={prompts}", f"--output={tmp_path / 'out'}", "--max_new_tokens=2", "--device=cpu"]
    assert main(["evaluate", str(model_folder), *options]) == 2
    assert "chat template" in capsys.readouterr().err


def test_a_package_that_is_named_is_not_imported(tmp_path, marker, monkeypatch):
    folder = tmp_path / "strange_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(CODE.format(marker=str(marker)))
    with pytest.raises(ModelError, match=r"expected one \.gguf file"):
        load("package:strange_package")


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("read", [load, skeleton])
def test_a_config_names_no_kernels(read, name, model_folder, marker):
    edit(model_folder / "config.json", **{name: "strange/kernel"})
    with pytest.raises(ModelError, match="which is code from the hub"):
        read(model_folder)


# What plans, records and results say


def everything_named(value):
    """The same data, every text in it the name of a class in the stranger's module."""
    if isinstance(value, dict):
        return {name: everything_named(each) for name, each in value.items()}
    return [everything_named(each) for each in value] if isinstance(value, list) else f"{MODULE}.LlamaForCausalLM"


def test_what_a_plan_names_is_never_imported(model_folder, pruned, tmp_path, marker, text, verb):
    settings = {"name": "nri", "of": "params", "options": {"name": "nri"}, "search": ["a"], "tokens": 5}
    figures = {"ppl_before": 1.0, "ppl_after": 1.0, "tokens": 5}
    plan = json.loads((pruned / "prune_plan.json").read_text())
    for name in ("calibration", "scorer", "search", "budget"):
        plan[name] = everything_named(settings)
    plan["versions"] = everything_named({"torch": "2"})
    plan["healing"] = {**everything_named(settings), **figures}
    plan["model"]["name"] = plan["model"]["revision"] = f"{MODULE}.LlamaForCausalLM"
    (pruned / "prune_plan.json").write_text(json.dumps(plan))
    assert main(["apply", str(pruned), str(model_folder), f"--output={tmp_path / 'applied'}"]) == 0
    for name in VERBS:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert verb(name, pruned) == 0
    plan["compensation"] = {"name": f"{MODULE}.LlamaForCausalLM"}
    (pruned / "prune_plan.json").write_text(json.dumps(plan))
    assert main(["apply", str(pruned), str(model_folder), f"--output={tmp_path / 'again'}"]) == 2


def test_what_a_journal_says_is_never_imported(tmp_path, marker):
    path = tmp_path / "journal.jsonl"
    header = {"scorer": {"name": f"{MODULE}.LlamaForCausalLM"}}
    journal = Journal(path, header)
    journal.put((frozenset({SublayerId(1, "mlp")}), 0), [1.0], 4)
    strange = [
        {"without": [f"{MODULE}.Config"], "batch": 0, "nll": [1.0], "blocks": 1},
        {"without": ["mlp.1"], "batch": [0], "nll": [1.0], "blocks": 1},
        {"without": ["mlp.1"], "batch": 1, "nll": "x", "blocks": 1},
        {"without": [f"mlp.{MAX_BLOCKS}"], "batch": 0, "nll": [1.0], "blocks": 1},
        [1],
        {},
    ]
    with path.open("a") as file:
        for each in map(json.dumps, strange):
            # A stranger can compute a checksum as well.
            file.write(f'{each[:-1]}, "crc32": {zlib.crc32(each.encode())}}}\n')
        file.write("[" * 100_000 + "\n")
    journal.close()
    with pytest.warns(UserWarning, match="7 lines"):
        again = Journal(path, header)
    assert len(again) == 1
    assert again[frozenset({SublayerId(1, "mlp")}), 0] == [1.0]
    again.close()


@pytest.mark.parametrize("record", [{"layout": {"attention": f"{MODULE}.Config"}}, {"biases": {"mlp.0": MODULE}}])
def test_what_a_record_says_is_never_imported(record, model_folder, marker):
    edit(model_folder / "config.json", lit_prune={"version": 1, "removed": ["mlp.1"], **record})
    with pytest.raises(LitPruneError):
        load(model_folder)
    with pytest.raises(LitPruneError):
        AutoModelForCausalLM.from_pretrained(model_folder)


def test_a_layout_makes_no_objects(model_folder, tmp_path, marker):
    (tmp_path / "layout.yaml").write_text(f"attention: !!python/object/apply:os.mkdir [{str(marker)!r}]")
    with pytest.raises(LitPruneError, match="cannot read the layout"):
        load(model_folder, layout=tmp_path / "layout.yaml")


# Paths


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "/outside.safetensors", "a/../../outside.safetensors", "..\\x"]
)
@pytest.mark.parametrize("read", [load, skeleton])
def test_an_index_names_nothing_outside_of_the_folder(read, place, model_folder, tmp_path):
    tensors = load_file(model_folder / "model.safetensors")
    save_file(tensors, tmp_path / "outside.safetensors", metadata={"format": "pt"})
    (model_folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, place)}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names weights outside of the folder"):
        read(model_folder)
    index["weight_map"] = dict.fromkeys(tensors, "part.safetensors")
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(tensors, model_folder / "part.safetensors", metadata={"format": "pt"})
    assert read(model_folder).config.num_hidden_layers == 4


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "..", "a/b/../../../escaped"])
def test_names_in_plans_make_no_paths(name, pruned, model_folder, tmp_path):
    plan = json.loads((pruned / "prune_plan.json").read_text())
    plan["model"]["name"] = plan["calibration"]["source"] = name
    plan["scorer"] = plan["search"] = {"name": name}
    (pruned / "prune_plan.json").write_text(json.dumps(plan))
    inside = tmp_path / "one/two/three"
    inside.mkdir(parents=True)
    before = {each for each in tmp_path.rglob("*") if inside not in each.parents}
    assert main(["apply", str(pruned), str(model_folder), f"--output={inside / 'out'}"]) == 0
    assert main(["report", str(inside / "out"), f"--output={inside / 'page.html'}"]) == 0
    assert main(["export", str(inside / "out"), "--format=hf-zeroed", f"--output={inside / 'zeroed'}"]) == 0
    assert {each for each in tmp_path.rglob("*") if inside not in each.parents} == before


def test_labels_and_models_make_no_paths(model_folder, tmp_path, text):
    (tmp_path / "a").mkdir()
    shutil.copytree(model_folder, tmp_path / "model")
    model = str(tmp_path / "a/../model")
    output, methods = tmp_path / "out", "--methods=[{method: nri, label: ../../../escaped}, {method: ri, label: ..}]"
    sizes = ["--num_windows=2", "--num_unseen=2", SPEED]
    before = {each for each in tmp_path.rglob("*") if output not in each.parents} | {output}
    options = [f"--output={output}", f"--data={text}", "--amounts=[0.1]", methods, *sizes, *SMALL]
    assert main(["compare", model, *options]) == 0
    assert {each for each in tmp_path.rglob("*") if output not in each.parents} == before
    assert len(list((output / "journals").rglob("*.jsonl"))) == 2


# What is shown


class Tags(HTMLParser):
    """The tags of a page, each with the names of its attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, *(name for name, _ in attrs)))


def test_a_page_shows_names_and_answers_as_they_are(pruned, tmp_path):
    found = []
    for name in ("harmless", "</title><script>alert(1)</script>", '"><img src=x onerror=alert(1)>'):
        plan = json.loads((pruned / "prune_plan.json").read_text())
        plan["model"]["name"] = plan["calibration"]["source"] = name
        plan["scorer"] = plan["search"] = {"name": name}
        (pruned / "prune_plan.json").write_text(json.dumps(plan))
        answer = {"question": name, "before": name, "after": name}
        summary = {"figures": [], "answers": [answer], "notes": [name], "plan": plan}
        (pruned / "summary.json").write_text(json.dumps(summary))
        assert main(["report", str(pruned), f"--output={tmp_path / 'page.html'}"]) == 0
        found.append(Tags((tmp_path / "page.html").read_text()).found)
        assert not re.search(r"(?<!\\)<(script|img|/title)", answer_markdown(Answer(name, name, name)))
    assert found[0] == found[1] == found[2]
    assert not any(tag == "script" for tag, *_ in found[0])


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "x](javascript:alert(1))", "a\u2028# b\n# c", "`<b>`"]
)
def test_a_card_shows_names_as_they_are(hostile, pruned, model_folder, tmp_path):
    plan = json.loads((pruned / "prune_plan.json").read_text())
    plan["model"]["name"] = f"owner/{hostile}"
    plan["scorer"] = {"name": hostile}
    plan["calibration"] = {"source": hostile}
    (pruned / "prune_plan.json").write_text(json.dumps(plan))
    assert main(["apply", str(pruned), str(model_folder), f"--output={tmp_path / 'out'}"]) == 0
    card = (tmp_path / "out/README.md").read_text()
    front, _, rest = card.removeprefix("---\n").partition("---\n")
    assert "base_model" not in front
    assert "base_model" not in rest
    assert not re.search(r"(?<!\\)<(script|b)>|(?<!\\)\]\(", rest)
    assert not re.search(r"^# [bc]$", rest, re.MULTILINE)


def test_an_error_moves_no_cursor(pruned, model_folder, tmp_path, capsys):
    plan = json.loads((pruned / "prune_plan.json").read_text())
    plan["model"] |= {"name": "\x1b]0;title\x07\x1b[2J", "hidden_size": 33}
    (pruned / "prune_plan.json").write_text(json.dumps(plan))
    assert main(["apply", str(pruned), str(model_folder), f"--output={tmp_path / 'out'}"]) == 2
    assert "\ufffd]0;title\ufffd" in (printed := capsys.readouterr().err)
    assert "\x1b" not in printed


# Limits

HUGE = 10**9
DEEP = {"prune_plan.json": '{"schema_version": 1, "budget": ' + '{"a": ' * 5000 + "1" + "}" * 5001}


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_layers", "n_layer", "num_local_experts"])
@pytest.mark.parametrize("read", [load, skeleton])
def test_a_config_of_a_billion_blocks_is_refused(read, name, model_folder):
    edit(model_folder / "config.json", **{name: HUGE})
    with pytest.raises(ModelError, match="no model has over"):
        read(model_folder)


@pytest.mark.parametrize(
    "record",
    [
        {"num_blocks": HUGE, "blocks": [0, 1, 2, 3]},
        {"num_blocks": 9000, "blocks": [0, 1, 2, 3]},
        {"removed": [f"mlp.{HUGE}"]},
        {"removed": ["mlp." + "9" * 5000]},
        {"removed": ["mlp.4"]},
        {"removed": 5},
        {"biases": {"mlp.0": 5}},
        {"biases": {"mlp.0": "../x"}},
        {"biases": {"mlp.0": ""}},
        {"biases": [1]},
    ],
)
def test_a_record_that_cannot_be_is_refused(record, model_folder):
    edit(model_folder / "config.json", lit_prune={"version": 1, "removed": ["mlp.1"], **record})
    with pytest.raises(LitPruneError, match="record"):
        load(model_folder)


def set_in(data, *path):
    *way, last, value = path
    for each in way:
        data = data[each]
    data[last] = value


@pytest.mark.parametrize(
    "path",
    [
        ("model", "num_blocks", HUGE),
        ("model", "num_blocks", 0),
        ("model", "num_parameters", 10**400),
        ("model", "num_parameters", 0),
        ("model", "num_parameters", "many"),
        ("model", "name", ["x"]),
        ("steps", 0, "removed", f"mlp.{HUGE}"),
        ("steps", 0, "removed", "mlp." + "9" * 5000),
        ("steps", 0, "removed", "mlp.4"),
        ("steps", 0, "num_parameters", 10**400),
        ("steps", 0, "num_parameters", -1),
        ("steps", 0, "num_parameters", 10**9),
        ("steps", 0, "epoch", [1]),
        ("steps", 0, "measured", [1]),
        ("steps", 0, "errors", 5),
        ("steps", 0, "compensation", "x"),
        ("steps", 0, "disturbed", "x"),
        ("healing", {"tokens": "x", "ppl_before": 1.0, "ppl_after": 1.0}),
        ("compensation", {"name": 5}),
        ("budget", {"of": "flops", "reached": 1}),
        ("budget", {"of": "flops", "reached": 1, "unit": "FLOP", "amount": None, "total": 0}),
        ("budget", [1]),
    ],
    ids=lambda path: ".".join(str(each)[:20] for each in path),
)
def test_a_plan_that_cannot_be_is_one_clear_error(path, pruned):
    data = json.loads((pruned / "prune_plan.json").read_text())
    set_in(data, *path)
    (pruned / "prune_plan.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match=r"is damaged|no model with a block"):
        PrunePlan.load(pruned)
    with pytest.raises(PlanError):
        read_sources([pruned])


def test_numbers_that_are_none_are_kept_and_shown(pruned, tmp_path):
    data = json.loads((pruned / "prune_plan.json").read_text())
    data["steps"][0] |= {"score": "nan", "nll_before": "inf", "nll_after": 1e300, "cost": "-inf"}
    text = json.dumps(data).replace('"-inf"', "NaN").replace("1e+300", "1e999")
    (pruned / "prune_plan.json").write_text(text)
    assert main(["report", str(pruned), f"--output={tmp_path / 'page.html'}"]) == 0
    step = PrunePlan.load(pruned).steps[0]
    assert [str(each) for each in (step.score, step.nll_before, step.nll_after, step.cost)] == [
        "nan",
        "inf",
        "inf",
        "nan",
    ]


def test_deep_json_is_one_clear_error(model_folder, tmp_path):
    deep = '{"a": ' * 100_000 + "1" + "}" * 100_000
    (tmp_path / "plan.json").write_text(deep)
    with pytest.raises(PlanError, match="too deep"):
        PrunePlan.load(tmp_path / "plan.json")
    with pytest.raises(DataError, match="too deep"):
        read_summary(tmp_path / "plan.json")
    for name in ("evaluation.json", "analysis.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(deep)
        with pytest.raises(DataError, match="too deep"):
            read_sources([folder])
    (model_folder / "config.json").write_text(deep)
    with pytest.raises(ModelError, match="too deep"):
        load(model_folder)
