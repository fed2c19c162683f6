"""Prune inside Hugging Face's Trainer; TRL's trainers take the same callback.

python examples/hugging_face_trainer.py --text text.jsonl
"""

import argparse

from lit_prune.callbacks import HfPruneCallback
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import lit_prune


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--text", default="builtin", help="builtin, a file, a folder or a hub data set")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=128, help="for training")
    parser.add_argument("--output", default="runs/hugging-face")
    asked = parser.parse_args()

    tokenizer = lit_prune.load_tokenizer(asked.model)
    windows = lit_prune.drawn_windows(asked.text, tokenizer, window=asked.window, wanted=asked.windows + 8, seed=0)
    rows = [{"input_ids": row, "labels": row} for row in windows]
    arguments = TrainingArguments(
        output_dir=asked.output, num_train_epochs=3, per_device_train_batch_size=4, learning_rate=1e-5, report_to=[]
    )
    pruning = HfPruneCallback(amount=0.1)
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(asked.model),
        arguments,
        train_dataset=rows[8:],
        eval_dataset=rows[:8],  # which scores
        processing_class=tokenizer,
        callbacks=[pruning],
    )
    trainer.train()
    lit_prune.save(trainer.model, f"{asked.output}/pruned", tokenizer=tokenizer, plan=pruning.plan)
    print(f"removed {', '.join(map(str, pruning.plan.removed))}")


if __name__ == "__main__":
    main()
