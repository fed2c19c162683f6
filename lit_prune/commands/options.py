"""Options that several verbs have, each described once; `arguments.call` makes an option of every field."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_prune.commands.arguments import default_device
from lit_prune.data import drawn_windows, require_positive
from lit_prune.loading.models import load, load_tokenizer


@dataclass(frozen=True)
class Loading:
    """How models are loaded.

    Attributes:
        dtype: Data type of the weights: float32, bfloat16, float16, or auto for that of the files.
        device: Device, such as cuda:0 or cpu; by default a GPU where there is one.
        trust_remote_code: Run code that comes with the model.
    """

    dtype: str = "float32"
    device: str | None = None
    trust_remote_code: bool = False

    @property
    def place(self) -> str:
        """The device that was named, else a GPU where there is one."""
        return default_device(self.device)

    def model(self, name: str, layout: str | None = None) -> PreTrainedModel:
        """Load a model, straight onto its device; `layout` is a file that describes blocks."""
        code = self.trust_remote_code
        return load(name, dtype=self.dtype, device=self.place, layout=layout, trust_remote_code=code)

    def tokenizer(self, name: str) -> PreTrainedTokenizerBase:
        """Load a model's tokenizer."""
        return load_tokenizer(name, trust_remote_code=self.trust_remote_code)


@dataclass(frozen=True)
class Sample:
    """Windows of tokens that are drawn from a text.

    Attributes:
        data: Text: builtin (Python's help topics), a .txt, .jsonl, .json or .parquet file, a folder, or a hub data set.
        window: Tokens in a window.
        num_windows: Windows, drawn from the text.
        batch_size: Windows in a batch, whose states are held at a time.
        seed: Decides which windows are drawn.
    """

    data: str = "builtin"
    window: int = 256
    num_windows: int = 8
    batch_size: int = 1
    seed: int = 0

    def require_possible(self, **numbers: int | None) -> None:
        """Refuse numbers below 1, of windows and of what else is named."""
        require_positive(num_windows=self.num_windows, batch_size=self.batch_size, **numbers)

    def windows(
        self, tokenizer: PreTrainedTokenizerBase, *, wanted: int | None = None, most: int | None = None
    ) -> Tensor:
        """Draw windows, [windows, window]; a DataError where the text has fewer than are wanted.

        By default `num_windows` are wanted; `most` are taken where the text has them, or as many as are wanted.
        """
        wanted = self.num_windows if wanted is None else wanted
        return drawn_windows(self.data, tokenizer, window=self.window, wanted=wanted, most=most, seed=self.seed)
