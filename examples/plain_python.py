"""Prune without training, measure, save, load, generate.

python examples/plain_python.py --text text.jsonl
"""

import argparse

from transformers import AutoModelForCausalLM

import lit_prune


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--text", default="builtin", help="builtin, a file, a folder or a hub data set")
    parser.add_argument("--amount", type=float, default=0.1)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--prompt", default="The capital of France is")
    parser.add_argument("--output", default="smaller")
    asked = parser.parse_args()

    model, tokenizer = lit_prune.load(asked.model), lit_prune.load_tokenizer(asked.model)
    windows = lit_prune.drawn_windows(asked.text, tokenizer, window=asked.window, wanted=24, seed=0)
    search, unseen = (lit_prune.calibration_batches(rows, 4) for rows in (windows[:16], windows[16:]))
    mixed = lit_prune.drawn_windows("mixed", tokenizer, window=asked.window, wanted=48, seed=0)

    before = lit_prune.perplexity(model, unseen)
    plan = lit_prune.prune(
        model,
        search,
        amount=asked.amount,
        search="lazy",
        compensate="refit",
        compensate_on=lit_prune.calibration_batches(mixed, 4),
    )
    after = lit_prune.perplexity(model, unseen)
    print(f"removed {', '.join(map(str, plan.removed))}: perplexity {before.ppl:.2f} -> {after.ppl:.2f}")

    lit_prune.save(model, asked.output, tokenizer=tokenizer, plan=plan)
    again = AutoModelForCausalLM.from_pretrained(asked.output)  # any loader of transformers, with lit_prune imported
    prompt = tokenizer(asked.prompt, return_tensors="pt")
    print(tokenizer.decode(again.generate(**prompt, max_new_tokens=20, do_sample=False)[0]))


if __name__ == "__main__":
    main()
