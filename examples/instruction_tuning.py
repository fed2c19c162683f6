"""Tune on instructions, prune before the first step, and let LoRA learn the answers from the model as it was.

    python examples/instruction_tuning.py --chats chats.jsonl

Rows of the file hold `messages`, as TRL has them; a hub data set of such rows does as well.
"""

import argparse

import lightning as L
from lit_prune.callbacks import BeforeAfterCallback, SublayerPruneCallback

from lit_prune import Distillation, LitCausalLM, LoraHealing, TextDataModule


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--chats", default="HuggingFaceTB/smol-smoltalk")
    parser.add_argument("--question", default="What is the capital of France, and what is it known for?")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=400, help="for training")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, and of a timed prompt")
    parser.add_argument("--output", default="runs/instruction-tuning")
    asked = parser.parse_args()
    data = TextDataModule(
        asked.chats,
        window=asked.window,
        batch_size=2,
        train_windows=asked.windows,
        val_windows=8,
        test_windows=8,
        answers_only=True,  # questions are read, and not learned
    )
    pruning = SublayerPruneCallback(
        amount=0.1,
        schedule=0.1,  # all of it before the first epoch, the rest of the training heals
        healing=LoraHealing(rank=16),
        distill=Distillation(cross_entropy=0.2),
        save_to="pruned",
    )
    shown = BeforeAfterCallback(asked.question, max_new_tokens=asked.tokens, prompt_tokens=asked.tokens, new_tokens=8)
    trainer = L.Trainer(max_epochs=2, default_root_dir=asked.output, callbacks=[pruning, shown])
    trainer.fit(LitCausalLM(asked.model, learning_rate=5e-4, lr_schedule="cosine", warmup_steps=4), data)


if __name__ == "__main__":
    main()
