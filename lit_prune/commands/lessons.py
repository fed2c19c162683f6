"""Options of `lit-prune heal`: what is trained on, and who teaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial

from lit_prune.commands.checks import SELF
from lit_prune.commands.options import Loading, self_written
from lit_prune.errors import DataError, LitPruneError, ModelError
from lit_prune.files import say
from lit_prune.plan import HealingSettings, PrunePlan

TYPE_CHECKING = False  # for mypy alone: what is under typing's, jsonargparse imports
if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lit_prune.healing import Teacher


@dataclass(frozen=True)
class Lessons:
    """What is trained on.

    Attributes:
        data: Texts to train on, in equal shares - builtin, files as for prune, folders, hub data sets, of texts or of
            dialogues, or self for text that the teacher writes, half of it dialogues where it has a chat template; by
            default builtin, and self where a model teaches.
        window: Tokens in a window.
        val_windows: Windows for validation.
        batch_size: Windows in a batch.
        answers_only: Of dialogues learn only what the assistant says; of a text all is learned.
        by_document: Documents stay whole, several in a window where they fit, and do not see each other.
        requests: File of requests that the model is for, as the prompts of evaluate: by how their first turns are
            answered it is examined, and behind them repaired. By default the teacher writes such ones.
        seed: Decides which windows and requests are drawn, and their order.
    """

    data: list[str] | None = None
    window: int = 256
    val_windows: int = 32
    batch_size: int = 2
    answers_only: bool = False
    by_document: bool = False
    requests: str | None = None
    seed: int = 0

    def texts(self, *, taught: bool) -> list[str]:
        """The texts by name."""
        return self.data or (["builtin", SELF] if taught else ["builtin"])

    def windows(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        tokens: int,
        writer: Callable[[], PreTrainedModel],
        num_requests: int = 0,
    ) -> dict[str, Tensor]:
        """Draw the windows for so many training tokens as `train`, and those for `validation`.

        A model writes what is `self`, and `requests` for it to answer, where some are wanted, it chats, and there are
        none of the user's.
        """
        import torch

        from lit_prune.data import drawn_windows, require_answers
        from lit_prune.healing import written_requests

        own = self.asked(tokenizer)
        asked = {} if own is None else {"requests": own}
        share = -(-self.val_windows // len(texts))
        wanted = share + -(-tokens // (self.window * len(texts)))
        draw = partial(
            drawn_windows,
            window=self.window,
            wanted=share + 1,
            most=wanted,
            seed=self.seed,
            answers_only=self.answers_only,
            by_document=self.by_document,
        )
        drawn = {text: draw(text, tokenizer) for text in texts if text != SELF}
        if self.answers_only:
            require_answers(torch.cat([*drawn.values(), torch.zeros(0, self.window, dtype=torch.long)]))
        asks = num_requests > 0 and not asked and getattr(tokenizer, "chat_template", None) is not None
        model = cache(writer)
        if SELF in texts:
            drawn[SELF] = self_written(model(), tokenizer, wanted, self.window, self.seed)
        windows = [drawn[text] for text in drawn]
        found = {
            "train": torch.cat([rows[share:] for rows in windows]),
            "validation": torch.cat([rows[:share] for rows in windows]),
            **asked,
        }
        if asks:
            say(f"the dense model writes {num_requests} requests, to see how they are answered")
            requests = written_requests(model(), num_requests, tokenizer=tokenizer, seed=self.seed)
            if requests is not None and 2 * len(requests) >= num_requests:
                return {**found, "requests": requests}
            say("too few of them end: beginnings of the texts are gone on with instead")
        return found

    def require_requests(self, training: HealingSettings, tokenizer: PreTrainedTokenizerBase, *, taught: bool) -> None:
        """Refuse requests of the user's that are too few, cannot be read, or have no teacher to answer them."""
        asked = self.asked(tokenizer)
        if asked is None:
            return
        if not taught:
            raise LitPruneError("requests are answered beside a teacher: leave out --requests, or --distill false")
        training.require_prompts(len(asked))

    def asked(self, tokenizer: PreTrainedTokenizerBase) -> Tensor | None:
        """The user's requests, in an order drawn by the seed, LongTensor [requests, length], -1 in front.

        Raises:
            DataError: The file cannot be read; see `read_prompts`.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        from lit_prune.evaluation import question, read_prompts

        if self.requests is None:
            return None
        prompts = read_prompts(self.requests)
        found = [torch.tensor(question(tokenizer, prompt.turns[:1], ())) for prompt in prompts]
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(self.seed)).tolist()
        return pad_sequence([found[place] for place in order], batch_first=True, padding_value=-1, padding_side="left")


@dataclass(frozen=True)
class Teaching:
    """Who teaches.

    Attributes:
        distill: Learn the teacher's distribution; without, the text itself.
        dense: The dense model, which teaches; by default the one that the plan names, whose code is not run.
        teacher: Another model that teaches instead, with the same tokens: one that was trained further, or a larger
            one. It takes its own memory, where the dense model is held inside the pruned one.
    """

    distill: bool = True
    dense: str | None = None
    teacher: str | None = None

    def require_possible(self, training: HealingSettings) -> None:
        """Refuse two teachers, and what another teacher cannot teach."""
        if self.teacher is not None and (self.dense is not None or training.hidden):
            raise LitPruneError(
                "another teacher takes the dense model's place, and its hidden states are its own; leave dense and "
                "training.hidden out"
            )

    def require_there(self, name: str, texts: Sequence[str], loading: Loading) -> None:
        """Refuse a dense model, by its name, that is to teach or write and is not there."""
        from lit_prune.loading.models import require_model

        if self.teacher is None and name and (self.distill or SELF in texts):
            with _as_teacher():
                require_model(name, trust_remote_code=self._trusted(loading))

    def _trusted(self, loading: Loading) -> bool:
        # Code that came with a model is trusted by its name from the user, not from a plan.
        return loading.trust_remote_code and self.dense is not None

    def require_tokens(self, tokenizer: PreTrainedTokenizerBase, loading: Loading) -> None:
        """Refuse another teacher whose tokens are not the student's, before it writes or teaches."""
        from lit_prune.healing import require_same_tokens

        if self.teacher is not None:
            require_same_tokens(loading.tokenizer(self.teacher).get_vocab(), tokenizer.get_vocab())

    def of(self, plans: Mapping[str, PrunePlan]) -> str:
        """The name of the dense model, which all plans must agree on where one of them is to name it."""
        planned = {plan.model.name for plan in plans.values()}
        if self.dense is None and self.teacher is None and len(planned) > 1:
            raise DataError(
                f"the models were pruned from {' and '.join(sorted(planned))}: heal prunings of one model together, or "
                "give it as --dense"
            )
        return self.dense or min(planned)

    def model(self, name: str, loading: Loading) -> PreTrainedModel:
        """Load the model that teaches, and writes where text is wanted; `name` is the dense one's."""
        if self.teacher is not None:
            return loading.model(self.teacher)
        if not name:
            raise DataError("the plan does not name the dense model; give it as --dense, or leave --distill false")
        with _as_teacher():
            return replace(loading, trust_remote_code=self._trusted(loading)).model(name)

    def student(
        self, model: Callable[[], PreTrainedModel], name: str, loading: Loading
    ) -> tuple[PreTrainedModel, Teacher | None]:
        """Load a pruned model that learns, and who teaches it: the model, which is loaded by need, or nobody."""
        from lit_prune.healing import DenseTeacher, OtherTeacher

        student = loading.model(name)
        if not self.distill:
            return student, None
        if self.teacher is not None:
            return student, OtherTeacher(model(), student)
        teacher = DenseTeacher.of_pruned(model(), student)
        return teacher.student, teacher


@contextmanager
def _as_teacher() -> Iterator[None]:
    """Say of a model that cannot be had what it was wanted for."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"the dense model that teaches: {error}; give it as --dense, or --distill false") from error
