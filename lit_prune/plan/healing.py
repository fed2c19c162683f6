"""How a healing is asked for, and what it came to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lit_prune.errors import LitPruneError

PARTS = ("norms", "head")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


@dataclass(frozen=True)
class LoraHealing:
    """How a pruned model is healed: low-rank updates of its linear layers (LoRA, arXiv 2106.09685).

    Args:
        rank: The rank of the updates, 1 or more.
        alpha: The scale of the updates, times 1 / rank; twice the rank when None.
        dropout: The share of inputs dropped in training, from 0 to below 1.
        targets: `all-linear`, or names of modules such as `[q_proj, v_proj]`.

    Raises:
        LitPruneError: A number cannot be, or the targets are no expression.
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise LitPruneError(
                f"LoRA has a rank of 1 or more and a dropout of 0 to below 1; found {self.rank} and {self.dropout}"
            )
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise LitPruneError(f"the alpha of LoRA is a finite number; found {self.alpha}")
        try:
            re.compile(self.targets if isinstance(self.targets, str) else "")
        except re.error as error:
            raise LitPruneError(
                f"LoRA's targets are all-linear, a list of names or an expression; {self.targets!r} is none: {error}"
            ) from error


@dataclass(frozen=True)
class Distillation:
    """What is learned from a dense teacher.

    Args:
        temperature: The temperature of both distributions in the divergence from the teacher, above 0.
        cross_entropy: The weight of the loss on the text itself beside the divergence, from 0 to 1; without a teacher
            it is 1.
        hidden: The weight of the relative squared distance from the teacher's hidden states behind blocks that lost
            something, 0 or more.

    Raises:
        LitPruneError: A number is outside its range.
    """

    temperature: float = 1.0
    cross_entropy: float = 0.0
    hidden: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.cross_entropy <= 1 or self.hidden < 0:
            raise LitPruneError(
                "distillation takes a temperature above 0, cross_entropy from 0 to 1 and hidden of 0 or more; "
                f"found {self.temperature}, {self.cross_entropy} and {self.hidden}"
            )


@dataclass(frozen=True)
class HealingSettings(Distillation):
    """How a healing trains; what it learns from a teacher is set as for `Distillation`, a fifth of it from the text.

    Args:
        tokens: The number of tokens to train on, over all steps; rounded up to whole batches.
        learning_rate: The highest learning rate; the default was best for 135 million parameters, and larger models
            want less.
        lr_schedule: One of cosine, linear, constant and constant_with_warmup, as in transformers.
        warmup: The share of the steps in which the rate rises, from 0 to 1.
        validations: How often perplexity is measured, evenly spread over the steps.
        patience: The number of validations without a better perplexity after which it stops; None never stops.
        also: What is trained besides the adapters: `norms`, `head` (with the embedding, where the two are tied).
        last_blocks: The number of blocks at the end that are trained whole.
        repair: The weight of the loss of pairs of continuations, the teacher's and the model's own, from where the
            model begins to repeat itself and the teacher does not, and, for as many texts as it ends more than the
            teacher, from where it ends before it: behind at most four prompts for each step, written anew behind every
            validation. 0 leaves it out.
        examined: The number of prompts that the model and its teacher go on with at every validation; of two states of
            like perplexity that one is kept which repeats itself and ends texts less, where that is more than the
            teacher does. 0 leaves it out.
        gradient_checkpointing: Whether activations are computed again in the backward pass, to spare memory.
        seed: The seed of the order of the windows, and of the adapters' first values.

    Raises:
        LitPruneError: A number is outside its range, or a name is unknown.
    """

    cross_entropy: float = 0.2
    tokens: int = 300_000
    learning_rate: float = 1.5e-3
    lr_schedule: str = "cosine"
    warmup: float = 0.05
    validations: int = 10
    patience: int | None = None
    also: tuple[str, ...] = ()
    last_blocks: int = 0
    repair: float = 0.0
    examined: int = 32
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1 or self.learning_rate <= 0 or self.validations < 1:
            raise LitPruneError("healing takes tokens, learning_rate and validations above 0")
        if not 0 <= self.warmup <= 1 or self.last_blocks < 0 or self.repair < 0 or self.examined < 0:
            raise LitPruneError("healing takes a warmup from 0 to 1, and last_blocks, repair and examined of 0 or more")
        if self.lr_schedule not in SCHEDULES:
            raise LitPruneError(f"healing takes an lr_schedule of {', '.join(SCHEDULES)}; found {self.lr_schedule!r}")
        if unknown := sorted({*self.also} - {*PARTS}):
            raise LitPruneError(f"healing can also train {' and '.join(PARTS)}; found {', '.join(unknown)}")

    def require_prompts(self, number: int) -> None:
        """Refuse too few prompts, of which some are left to repair where that is wanted.

        Raises:
            LitPruneError: There are no more than are examined.
        """
        if number <= (least := self.examined if self.repair else 0):
            raise LitPruneError(f"more than {least} prompts are wanted, since so many are examined; found {number}")


@dataclass(frozen=True)
class HealingReport:
    """What a healing came to.

    Attributes:
        ppl_before: The perplexity on the validation windows before the first step.
        ppl_after: The perplexity on them of the state that was kept.
        step: The step after which that was; 0 where nothing helped, and the model is as it was.
        steps: The number of steps that were trained.
        tokens: The number of tokens that they saw.
        seconds: The time of training and validation, in seconds.
        num_trained: The number of parameters that were trained.
        stopped: Whether Ctrl-C has ended it before the last step.
        merit: What decided for that state, the lower the better: its loss in nats, and the shares by which it repeats
            itself more, and ends more texts, than its teacher.
        manners: How the model went on with text `before` and `after`, and its `teacher`, in plain types as of
            `Manners`; empty where that was not looked at.
    """

    ppl_before: float
    ppl_after: float
    step: int
    steps: int
    tokens: int
    seconds: float
    num_trained: int
    stopped: bool = False
    merit: float = math.inf
    manners: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    @property
    def helped(self) -> bool:
        """Whether the model is better than it was."""
        return self.step > 0
