"""What tests of the page start from: runs that the real commands leave, and the page taken apart by html.parser."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from lit_prune.callbacks import BeforeAfterCallback

from lit_prune.__main__ import main
from lit_prune.report.page import report_page
from tests.callbacks.test_before_after import Data
from tests.callbacks.test_sublayer_prune import module, pruning, trainer
from tests.tiny import character_tokenizer, tiny_model

ANSWERS = [
    {"prompt": ["who?", "and why?"], "answers": {"model": ["they", "so"], "pruned": ["them", ""]}},
    {"prompt": [{"role": "user", "content": "where?"}], "answers": {"model": "here", "pruned": "there"}},
]
NO_END = {"br", "img", "input", "link", "meta", "hr", "path", "use", "line"}


@dataclass
class Element:
    """A tag with its attributes, the tags around it, and the text inside it, of its children too."""

    tag: str
    attributes: dict
    around: list
    pieces: list = field(default_factory=list)

    @property
    def text(self):
        return " ".join("".join(self.pieces).split())


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), [each.tag for each in self.open])
        self.elements.append(element)
        if tag not in NO_END:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(Element(tag, dict(attrs), [each.tag for each in self.open]))

    def handle_endtag(self, tag):
        if tag not in NO_END:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        for each in self.open:
            each.pieces.append(data)

    def all(self, tag, **attributes):
        return [
            each
            for each in self.elements
            if each.tag == tag
            and all(value in (each.attributes.get(name) or "").split() for name, value in attributes.items())
        ]

    def headings(self):
        return [each.text for each in self.elements if each.tag in ("h2", "h3")]

    def tables(self):
        """Every table as rows of texts, heads first."""
        found = []
        for each in self.elements:
            if each.tag == "table":
                found.append([])
            elif each.tag == "tr":
                found[-1].append([])
            elif each.tag in ("th", "td"):
                found[-1][-1].append(each.text)
        return found


def page(*folders, **options):
    return Page(report_page([str(each) for each in folders], **options))


def make_runs(root):
    """A model, what prune, heal, evaluate, compare and analyse make of it, and a training."""
    root.mkdir(parents=True, exist_ok=True)
    tiny_model("llama").save_pretrained(root / "model")
    character_tokenizer().save_pretrained(root / "model")
    text = root / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and runs away. " * 40)
    model, small = str(root / "model"), ["--window=16", "--device=cpu"]
    prune = ["prune", model, f"--data={text}", "--num_windows=4", *small]
    assert main([*prune, f"--output={root / 'pruned'}", "--amount=0.3", "--search=lazy"]) == 0
    assert main([*prune, f"--output={root / 'stock'}", "--amount=0.2", "--granularity=block"]) == 0
    heal = ["--training.tokens=256", "--val_windows=4", "--batch_size=2"]
    assert main(["heal", str(root / "pruned"), f"--output={root / 'healed'}", f"--data=[{text}]", *heal, *small]) == 0
    evaluate = ["evaluate", f"{root / 'pruned'},{root / 'healed'}", f"--against={model}", f"--texts=[{text}]"]
    assert main([*evaluate, "--num_windows=8", f"--output={root / 'evaluation'}", *small]) == 0
    with_answers(root / "evaluation", ANSWERS, {"model": model, "pruned": str(root / "pruned")})
    methods = "--methods=[shortgpt, {method: nri, label: nri attention, granularity: attention}]"
    sizes = ["--num_windows=2", "--num_unseen=2", "--speed={prompt_tokens: 8, new_tokens: 2, repeats: 1}"]
    compare = ["compare", model, f"--output={root / 'comparison'}", f"--data={text}", "--amounts=[0.1, 0.2]"]
    assert main([*compare, methods, *sizes, *small]) == 0
    analyse = ["analyse", f"{model},{root / 'pruned'}", f"--output={root / 'analysis'}", f"--data={text}"]
    assert main([*analyse, "--num_windows=2", *small]) == 0
    train(root / "fit")
    return root


def with_answers(folder, answers, names):
    """Put answers into an evaluation, and tasks beside perplexities, as longer measurements leave them."""
    path = folder / "evaluation.json"
    data = json.loads(path.read_text())
    data["answers"] = [
        {**each, "answers": {names[name]: said for name, said in each["answers"].items()}} for each in answers
    ]
    signs = {"tokens": 20.0, "ended": 0.5, "repetition": 0.01}
    far = {**signs, "repetition": 0.3, "cut_short": 0.25, "agreement": 0.75, "divergence": [0.2, 0.4]}
    data["signs"] = {names["model"]: signs, names["pruned"]: far}
    for each, value in zip(data["models"], (0.5, 0.46, 0.4), strict=True):
        each["tasks"] = {"piqa": {"metric": "acc", "value": value, "error": 0.02}}
    path.write_text(json.dumps(data))


def train(folder):
    """A run of the callback with TensorBoard, in a Lightning trainer."""
    lightning = module()
    lightning.tokenizer = character_tokenizer()
    callbacks = [
        pruning(save_to="pruned"),
        BeforeAfterCallback("how?", max_new_tokens=5, prompt_tokens=8, new_tokens=2, repeats=1),
    ]
    logger = TensorBoardLogger(folder.parent, name="", version=folder.name)
    trainer(folder.parent, *callbacks, logger=logger, log_every_n_steps=1).fit(lightning, datamodule=Data())
    assert (folder / "summary.json").is_file()
    assert Path(folder / "pruned/prune_plan.json").is_file()
