"""Greedy tokens by vLLM, in its environment: `python vllm_writes.py FOLDER PROMPTS.json NEW_TOKENS ANSWERS.json`."""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}

if __name__ == "__main__":
    # Here, since pytest looks for doctests in an environment without it.
    from vllm import LLM, SamplingParams

    folder, prompts, new_tokens, answers = sys.argv[1:]
    model = LLM(folder, trust_remote_code=True, dtype="float32", enforce_eager=True)
    asked = [{"prompt_token_ids": each} for each in json.loads(Path(prompts).read_text())]
    number = int(new_tokens)
    found = model.generate(asked, SamplingParams(temperature=0, max_tokens=number, min_tokens=number), use_tqdm=False)
    Path(answers).write_text(json.dumps([list(each.outputs[0].token_ids) for each in found]))
