"""Every step of a user with an installed lit-prune, on a tiny model: `python smoke.py`, outside of a checkout too.

Needs nothing but the package (with its extra gguf); prints the versions that it ran with, and one line a step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "lightning", "peft", "accelerate", "torchmetrics", "jsonargparse")
DEVICE = ["--device", "cpu"]
DATA = ["--data", "builtin", "--window", "32", "--num_windows", "8", *DEVICE]
TRAINER = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
FIT = [
    "--model.model=dense",
    "--data.source=builtin",
    "--data.window=32",
    "--data.train_windows=8",
    "--data.val_windows=4",
]
CALLBACK = """
import lightning as L
from lit_prune import LitCausalLM, TextDataModule, load
from lit_prune.callbacks import SublayerPruneCallback

data = TextDataModule("builtin", window=32, train_windows=8, val_windows=4)
pruning = SublayerPruneCallback(amount=0.2, save_to="pruned")
options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
trainer = L.Trainer(max_epochs=2, callbacks=[pruning], default_root_dir="callback", **options)
trainer.fit(LitCausalLM("dense"), data)
model = load("callback/pruned")
tokens = model.generate(next(iter(data.val_dataloader()))["input_ids"][:1], max_new_tokens=4, do_sample=False)
assert tokens.shape[1] > 32, tokens.shape
"""
STEPS = {
    "inspect": ["inspect", "dense"],
    "prune": ["prune", "dense", "--output", "pruned", "--amount", "0.2", *DATA],
    "apply": ["apply", "pruned", "dense", "--output", "again", "--compensate", "none", *DEVICE],
    "refit": ["apply", "pruned", "dense", "--output", "refitted", "--compensate", "refit", *DATA],
    "heal": ["heal", "pruned", "--output", "healed", "--data", "builtin", "--window", "32", "--training.tokens", "1024",
             *DEVICE],
    "evaluate": ["evaluate", "pruned,healed", "--against", "dense", "--texts", "builtin", "--window", "32", "--output",
                 "evaluation", *DEVICE],
    "compare": ["compare", "dense", "--output", "comparison", "--methods", "[shortgpt]", "--amounts", "[0.2]",
                "--speed", "{prompt_tokens: 8, new_tokens: 2, repeats: 1, warmup: 0}", *DATA],
    "report": ["report", "pruned", "healed", "evaluation", "comparison", "--output", "report.html"],
    "export": ["export", "pruned", "--format", "hf-remote-code", "--output", "exported"],
    "chat": ["chat", "pruned", "--against", "dense", "--max_new_tokens", "4", *DEVICE],
    "bench": ["bench", "speed", "dense,pruned", "--repeats", "1", "--prompt_tokens", "8", "--new_tokens", "2"],
    "fit": ["fit", *FIT, *TRAINER, "--trainer.max_epochs=2", "--trainer.default_root_dir=run",
            "--trainer.callbacks=lit_prune.callbacks.SublayerPruneCallback", "--trainer.callbacks.amount=0.2",
            "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_top_k=-1",
            "--trainer.callbacks.dirpath=checkpoints", "--trainer.callbacks.filename={epoch}"],
    "resume": ["fit", *FIT, *TRAINER, "--trainer.max_epochs=3", "--trainer.default_root_dir=resumed",
               "--trainer.callbacks=lit_prune.callbacks.SublayerPruneCallback", "--trainer.callbacks.amount=0.2",
               "--ckpt_path=checkpoints/epoch=0.ckpt"],
}  # fmt: skip


def make_dense(folder: Path) -> None:
    """Write a model of four blocks with random weights, and a tokenizer of characters."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = {chr(code): code - 32 for code in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel({**characters, "<unk>": 95, "</s>": 96}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    config = LlamaConfig(**sizes, **heads, bos_token_id=None, eos_token_id=96, pad_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)


def main() -> None:
    """Run all steps in a folder that is removed afterwards; the first that fails ends it with its output."""
    print(f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES), flush=True)
    with tempfile.TemporaryDirectory() as place:
        make_dense(Path(place) / "dense")
        (Path(place) / "callback.py").write_text(CALLBACK)
        program = [sys.executable, "-m", "lit_prune"]
        steps = {
            **{name: [*program, *step] for name, step in STEPS.items()},
            "callback": [sys.executable, "callback.py"],
        }
        for name, command in steps.items():
            environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
            run = subprocess.run(
                command, cwd=place, env=environment, input="hello\n", capture_output=True, text=True, check=False
            )
            if run.returncode:
                sys.exit(f"{name} failed\n{run.stdout}\n{run.stderr}")
            print(f"{name}: ok", flush=True)


if __name__ == "__main__":
    main()
