"""README's and the guides' own commands and code, word for word but for the model's size, the text and the device."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lit_prune.__main__ import main
from tests.tiny import tiny_model

ROOT = Path(__file__).parent.parent
SENTENCE = "the quick brown fox jumps over the lazy dog"
SMALL = {
    "prune": ["--window=32", "--num_windows=2", "--num_unseen=2", "--refit.window=32", "--refit.num_windows=4"],
    "apply": ["--window=32", "--num_windows=4"],
    "dial": ["--window=32", "--num_windows=4"],
    "heal": ["--window=32", "--val_windows=4", "--training.tokens=512", "--device=cpu"],
    "evaluate": ["--window=32", "--num_windows=4", "--tasks=null", "--max_new_tokens=4", "--device=cpu"],
    "chat": ["--max_new_tokens=4", "--device=cpu"],
    "analyse": ["--window=32", "--num_windows=2", "--impact=false", "--device=cpu"],
    "compare": [
        *("--methods=[random]", "--window=16", "--num_windows=2", "--num_unseen=2", "--device=cpu"),
        "--speed={prompt_tokens: 8, new_tokens: 2, repeats: 1}",
    ],
    "bench speed": ["--prompt_tokens=8", "--new_tokens=2", "--repeats=1", "--dtype=float32", "--device=cpu"],
    "bench draft": ["--window=32", "--num_windows=2", "--dtype=float32", "--device=cpu"],
}
"""What makes a verb quick on a tiny model."""
SMALL_CODE = {
    r'TextDataModule\("[^)]*\)': 'TextDataModule("text.jsonl", window=32, train_windows=8, val_windows=4)',
    r"L\.Trainer\(": 'L.Trainer(accelerator="cpu", devices=1, enable_progress_bar=False, ',
    r"BeforeAfterCallback\(\)": "BeforeAfterCallback(prompt_tokens=8, new_tokens=2, repeats=1, max_new_tokens=4)",
    r"TrainingArguments\(": "TrainingArguments(use_cpu=True, report_to=[], disable_tqdm=True, ",
    r'dtype="bfloat16"(, device="cuda")?': 'dtype="float32"',
    r"window=256": "window=32",
    r"window=512, wanted=32": "window=32, wanted=4",
}


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """Language and text of a page's listings, in their order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found if not languages or language in languages]


def commands(listing: str) -> list[str]:
    r"""The commands of a listing of the shell, each as one line, without remarks.

    A command goes on behind a backslash, and inside of quotes.
    """
    whole = re.sub(r" \\\n *", " ", listing)
    whole = re.sub(r"'[^']*'", lambda quoted: re.sub(r"\n *", " ", quoted[0]), whole)
    return [line.split(" #")[0].strip() for line in whole.splitlines() if line.strip()]


def small_code(code: str) -> str:
    """The same Python, on a CPU and on little text."""
    for pattern, small in SMALL_CODE.items():
        code = re.sub(pattern, lambda _, small=small: small, code)
    return code


def small_command(command: str) -> list[str]:
    """The arguments of a command of lit-prune, with those behind them that make it quick."""
    words = shlex.split(command)[1:]
    verb = " ".join(words[: 2 if words[0] == "bench" else 1])
    if "--steps" in words:  # the plans of tiny models have a step or two
        words[words.index("--steps") + 1] = "1"
    return [*words, *SMALL.get(verb, [])]


def run_command(command: str) -> None:
    """Run a command of lit-prune in small form; it must end well."""
    assert main(small_command(command)) == 0, command


def furnish(tokenizer: PreTrainedTokenizerBase, *names: str) -> None:
    """Put tiny models under these names, and text, into the working folder."""
    for name in names:
        tiny_model("llama").save_pretrained(name)
        tokenizer.save_pretrained(name)
    Path("text.jsonl").write_text(f'{{"text": "{SENTENCE}"}}\n' * 60)
    Path("questions.jsonl").write_text('{"prompt": "how are you?"}\n')


def names_of_a_script(model: str) -> dict[str, Any]:
    """What code of a page takes for given: a user's own batches, loaders and data sets, a model and its optimizer."""
    from lit_prune import load

    rows = torch.randint(3, 99, (4, 24), generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": row, "labels": row} for row in rows]
    loader = DataLoader(examples, batch_size=2)
    lm = load(model, dtype="float32")
    given = {"train_loader": loader, "val_loader": loader, "train": examples, "val": examples, "batches": [*loader]}
    return {**given, "lm": lm, "optimizer": torch.optim.SGD(lm.parameters(), lr=1e-3)}
