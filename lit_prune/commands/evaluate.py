"""`lit-prune evaluate`: perplexity on texts, accuracy on tasks, answers to questions, of models beside a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lit_prune.commands.arguments import call, model_names, require_writable, text_labels
from lit_prune.commands.options import Loading, manner_of
from lit_prune.commands.outcomes import say_next
from lit_prune.errors import LitPruneError
from lit_prune.files import say, write_json, write_text
from lit_prune.plan import PLAN_FILE

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lit_prune.commands.conversation import Conversation
    from lit_prune.evaluation import Measured, Prompt, TaskScore, TokenLoss


@dataclass(frozen=True)
class Texts:
    """Texts that perplexity is measured on.

    Attributes:
        texts: Texts to measure perplexity on - builtin, files as for prune, folders, hub data sets; builtin by default.
        window: Tokens in a window.
        stride: Tokens from one window to the next; what a window shares with the one before is context that does not
            count. Windows do not overlap by default.
        num_windows: Windows of every text, drawn at random; all that it has where it has fewer.
        seed: Decides which windows are drawn, and how answers are sampled.
        answers_only: Of dialogues only what the assistant says counts; all of a text does.
        by_document: Documents stay whole, several in a window where they fit, and do not see each other.
        data_name: Configuration of hub data sets, such as wikitext-2-raw-v1.
        data_split: Split of hub data sets.
        data_field: Key of the text in JSON lines and hub data sets.
    """

    texts: list[str] | None = None
    window: int = 256
    stride: int | None = None
    num_windows: int = 24
    seed: int = 0
    answers_only: bool = False
    by_document: bool = False
    data_name: str | None = None
    data_split: str | None = None
    data_field: str = "text"

    @property
    def sources(self) -> list[str]:
        """The texts by name."""
        return ["builtin"] if self.texts is None else self.texts

    def batches(self, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> dict[str, list[dict[str, Tensor]]]:
        """Batches of every text by its label; with a stride only so many at the end of a window are predicted."""
        import torch

        from lit_prune.data import calibration_batches, drawn_windows, require_answers
        from lit_prune.measure import IGNORED

        draw = partial(
            drawn_windows,
            window=self.window,
            wanted=1,
            most=self.num_windows,
            seed=self.seed,
            stride=self.stride,
            answers_only=self.answers_only,
            by_document=self.by_document,
            name=self.data_name,
            split=self.data_split,
            field=self.data_field,
        )
        windows = [draw(source, tokenizer) for source in self.sources]
        if self.answers_only:
            require_answers(torch.cat(windows))
        found = {}
        for label, rows in zip(text_labels(self.sources), windows, strict=True):
            found[label] = calibration_batches(rows, batch_size)
            if self.stride is not None:
                for batch in found[label]:
                    batch["labels"][:, : self.window - self.stride] = IGNORED
        return found


@dataclass(frozen=True)
class Tasks:
    """Tasks that accuracy is measured on.

    Attributes:
        tasks: Tasks of lm-evaluation-harness (needs the extra eval); paper stands for PIQA, WinoGrande, HellaSwag and
            ARC, hard for MMLU, GSM8K, HumanEval, AGIEval, LAMBADA and SQuAD completion.
        include_path: Folder with further task files; paper and hard then mean those that are there.
        limit: Items of every task; all by default.
        num_fewshot: Examples with answers before every item; by default what the task says.
        apply_chat_template: Whether items are asked by the model's chat template.
        system_instruction: What stands before every item, in a dialogue as the system's turn.
        task_batch_size: Requests of tasks at a time, or auto for the most that fits; batch_size by default.
        run_code: Whether tasks such as humaneval may run what the models write.
    """

    tasks: list[str] | None = None
    include_path: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    task_batch_size: int | Literal["auto"] | None = None
    run_code: bool = False

    def scores(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[str], batch_size: int
    ) -> dict[str, TaskScore]:
        """Measure a model's accuracy on tasks, with presets spelled out, by their names."""
        from lit_prune.evaluation import task_scores

        return task_scores(
            model,
            tokenizer,
            tasks,
            include_path=self.include_path,
            limit=self.limit,
            batch_size=self.task_batch_size or batch_size,
            num_fewshot=self.num_fewshot,
            apply_chat_template=self.apply_chat_template,
            system_instruction=self.system_instruction,
            run_code=self.run_code,
        )

    @property
    def asked(self) -> dict[str, Any]:
        """What distinguishes how items are asked from what the tasks say."""
        asked = {"num_fewshot": self.num_fewshot, "system_instruction": self.system_instruction}
        asked |= {"apply_chat_template": True} if self.apply_chat_template else {}
        return {name: value for name, value in asked.items() if value is not None}


@dataclass(frozen=True)
class Questions:
    """Questions that the models answer.

    Attributes:
        prompts: Questions to answer - .txt with one a line, or .jsonl and .json in the form of MT-Bench or AlpacaEval.
        num_prompts: The first so many of them; all by default.
        max_new_tokens: Length limit of an answer, in tokens.
        temperature: Temperature of sampled answers; 0 is greedy.
    """

    prompts: str | None = None
    num_prompts: int | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0

    def read(self, output: str | None) -> list[Prompt]:
        """Read the questions, which want a folder for the answers; none where no file is named."""
        from lit_prune.evaluation import read_prompts

        if self.prompts is None:
            return []
        if output is None:
            raise LitPruneError("prompts want an output folder for the answers; give it as --output")
        return read_prompts(self.prompts)[: self.num_prompts]


TEXTS, TASKS, QUESTIONS, LOADING = Texts(), Tasks(), Questions(), Loading()


def evaluate(
    models: str,
    *,
    against: str | None = None,
    on: Texts = TEXTS,
    accuracy: Tasks = TASKS,
    dialogue: Questions = QUESTIONS,
    batch_size: int = 4,
    output: str | None = None,
    loading: Loading = LOADING,
) -> None:
    """Measure perplexity on texts and accuracy on tasks, of models beside a reference, with standard errors.

    Perplexity is exp of the mean loss in float32 of all tokens of the windows but the first of each, or with a stride
    of the last so many of each.
    With prompts, the models answer them as well: side by side in OUTPUT/answers.md, for FastChat's llm_judge in
    OUTPUT/model_answer and for alpaca_eval in OUTPUT/alpaca_eval, with signs of damage that need no judge.

    Args:
        models: One or more, separated by commas: hub names, folders (pruned too), GGUF files, or package:NAME.
        against: The reference, such as the dense model; differences from it are shown, bold where they are more than
            1.96 standard errors of the difference over the same windows and items.
        on: The texts.
        accuracy: The tasks.
        dialogue: The questions.
        batch_size: Windows, requests or prompts in a batch.
        output: Folder for evaluation.md and evaluation.json, and the answers.
        loading: How the models are loaded.
    """
    from lit_prune.commands.conversation import Conversation
    from lit_prune.data import require_positive
    from lit_prune.evaluation import Measured, chosen_tasks
    from lit_prune.report import evaluation_markdown, signs_markdown

    require_writable(output, inside=True)
    names = model_names(models)
    names = [*([] if against is None else [against]), *(name for name in names if name != against)]
    questions = dialogue.read(output)
    tasks, left_out = chosen_tasks(accuracy.tasks or (), accuracy.include_path, run_code=accuracy.run_code)
    require_positive(num_windows=on.num_windows, batch_size=batch_size, limit=accuracy.limit)
    require_positive(max_new_tokens=dialogue.max_new_tokens)
    text_labels(on.sources)  # two texts of one name are told before long work
    conversation = Conversation(questions, dialogue.max_new_tokens, dialogue.temperature, batch_size, on.seed)
    rows: list[Measured] = []
    dtypes: dict[str, None] = {}
    tokenizers = {name: loading.tokenizer(name) for name in names}
    for tokenizer in tokenizers.values():
        conversation.require_askable(tokenizer)
    batches = {name: on.batches(tokenizer, batch_size) for name, tokenizer in tokenizers.items()}
    for name, tokenizer in tokenizers.items():
        model = loading.model(name)
        dtypes[str(model.dtype).removeprefix("torch.")] = None
        found = _perplexities(model, batches[name])
        scores = accuracy.scores(model, tokenizer, tasks, batch_size)
        conversation.ask(name, model, tokenizer, is_reference=name == against)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        rows.append(Measured(name, num_parameters, found, scores))
        told = ", ".join(f"{label} {measured.ppl:.2f}" for label, measured in found.items())
        say(f"{name}: perplexity {told}", flush=True)
    steps = "" if on.stride is None else f" of which the last {on.stride} count"
    asked = ", ".join(f"{name} {value}" for name, value in accuracy.asked.items())
    protocol = (
        f"Perplexity: windows of {on.window} tokens{steps}, at most {on.num_windows} of a text, {', '.join(dtypes)}, "
        f"{loading.place}.{f' Tasks: {asked}.' if asked else ''}"
    )
    page = f"{evaluation_markdown(rows, compared=against is not None)}\n{' '.join([protocol, *left_out])}\n"
    if questions:
        page += f"\n{signs_markdown(conversation.signs)}\n{conversation.protocol}\n"
    say(f"\n{page}")
    if output is not None:
        settings: dict[str, Any] = {
            "texts": on.sources,
            "window": on.window,
            "stride": on.stride,
            "num_windows": on.num_windows,
        }
        settings |= manner_of(on)
        settings |= {} if on.data_field == "text" else {"data_field": on.data_field}
        named = {"data_name": on.data_name, "data_split": on.data_split}
        settings |= {name: value for name, value in named.items() if value is not None}
        settings |= {"dtype": loading.dtype, "seed": on.seed, "limit": accuracy.limit, "against": against}
        settings |= accuracy.asked
        _write(Path(output), page, settings, rows, conversation)
        pruned = [name for name in names if (Path(name) / PLAN_FILE).is_file()]
        say_next({"see it on one page, with what went": ["report", *pruned, output]})


def _perplexities(
    model: PreTrainedModel, batches: Mapping[str, Sequence[Mapping[str, Tensor]]]
) -> dict[str, TokenLoss]:
    from lit_prune.evaluation import perplexity
    from lit_prune.measure import hint_if_implausible
    from lit_prune.surgery import removed_sublayers

    found = {label: perplexity(model, text) for label, text in batches.items()}
    if not removed_sublayers(model):
        hint_if_implausible(min(measured.nll for measured in found.values()), model)
    return found


def _write(
    folder: Path, page: str, settings: Mapping[str, Any], rows: Sequence[Measured], conversation: Conversation
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"settings": dict(settings), "models": [asdict(row) for row in rows]}
    if conversation.prompts:
        data |= conversation.to_dict()
        conversation.write(folder)
    write_json(folder / "evaluation.json", data)
    write_text(folder / "evaluation.md", page)
    say(f"written: {folder / 'evaluation.md'}")


run = partial(call, evaluate)
