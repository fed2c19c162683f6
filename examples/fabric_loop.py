"""Prune between the epochs of a loop of your own, with Lightning's Fabric.

fabric run --devices 2 --strategy ddp examples/fabric_loop.py
"""

import argparse

import lightning as L
import torch

import lit_prune


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--text", default="builtin", help="builtin, a file, a folder or a hub data set")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=128, help="for training")
    parser.add_argument("--output", default="smaller-by-fabric")
    asked = parser.parse_args()

    fabric = L.Fabric()
    fabric.launch()
    tokenizer = lit_prune.load_tokenizer(asked.model)
    windows = lit_prune.drawn_windows(asked.text, tokenizer, window=asked.window, wanted=asked.windows + 8, seed=0)
    scoring = lit_prune.calibration_batches(windows[:8], 4)
    training = fabric.setup_dataloaders(torch.utils.data.DataLoader(windows[8:], batch_size=4, shuffle=True))

    model, plan = lit_prune.load(asked.model, device=str(fabric.device)), None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for epoch, amount in enumerate((0.05, 0.1)):  # shares of the first model, as the plan is handed on
        plan = lit_prune.prune(model, scoring, amount=amount, after=plan, optimizers=[optimizer], fabric=fabric)
        student, stepping = fabric.setup(model, optimizer)  # anew: DDP waits for what went
        for rows in training:
            loss = student(input_ids=rows, labels=rows).loss
            fabric.backward(loss)
            stepping.step()
            stepping.zero_grad()
        fabric.print(f"epoch {epoch}: {amount:.0%} less, loss {loss.item():.3f}")
    if fabric.is_global_zero:
        lit_prune.save(model, asked.output, tokenizer=tokenizer, plan=plan)


if __name__ == "__main__":
    main()
