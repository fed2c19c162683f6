"""What lit-prune keeps in a model's config, as `config.lit_prune`: what is gone, and how the blocks were described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_prune.errors import AnatomyError, PlanError
from lit_prune.plan import MAX_BLOCKS, SublayerId

RECORD_KEY = "lit_prune"
RECORD_VERSION = 1


@dataclass(frozen=True)
class Record:
    """The entry in a model's config, read and checked.

    Attributes:
        removed: Addresses of the sublayers that are gone.
        blocks: Numbers of the original model's blocks that are in the list; None where none was taken out of it.
        num_blocks: Number of blocks in the original model, where some were taken out of the list.
        layout: The user's description of the blocks, as it was given.
        biases: Sublayers whose output projection got a bias, with its path inside the sublayer.
    """

    removed: tuple[SublayerId, ...] = ()
    blocks: tuple[int, ...] | None = None
    num_blocks: int | None = None
    layout: Mapping[str, Any] | None = None
    biases: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any) -> Record:
        """Read a (text) config's entry, empty where there is none; an AnatomyError says it is damaged or too new."""
        data = getattr(config, RECORD_KEY, None)
        if data is None:
            return cls()
        if not isinstance(data, Mapping) or data.get("version") != RECORD_VERSION:
            raise AnatomyError(f"the model was pruned by a newer lit-prune: its config says {RECORD_KEY} = {data!r}")
        try:
            removed = tuple(map(SublayerId.parse, data["removed"]))
            blocks = tuple(int(number) for number in data["blocks"]) if "blocks" in data else None
            num_blocks = int(data["num_blocks"]) if blocks is not None else None
            biases = {str(SublayerId.parse(name)): _path(path) for name, path in dict(data.get("biases", {})).items()}
            if num_blocks is not None and num_blocks > MAX_BLOCKS:
                raise ValueError(f"{num_blocks:,} blocks are in no model; lit-prune goes up to {MAX_BLOCKS:,}")
        except (KeyError, TypeError, ValueError, PlanError) as error:
            raise AnatomyError(f"the record {RECORD_KEY} in the model's config is damaged: {error!r}") from error
        return cls(removed, blocks, num_blocks, data.get("layout"), biases)

    def write(self, config: Any) -> None:
        """Put the entry into a config, which is saved with the model."""
        data: dict[str, Any] = {"version": RECORD_VERSION, "removed": [str(sublayer) for sublayer in self.removed]}
        if self.blocks is not None:
            data |= {"num_blocks": self.num_blocks, "blocks": list(self.blocks)}
        if self.layout is not None:
            data["layout"] = dict(self.layout)
        if self.biases:
            data["biases"] = dict(self.biases)
        setattr(config, RECORD_KEY, data)

    def require_possible(self, length: int) -> None:
        """Refuse with an AnatomyError an entry that does not fit a saved model with a list of blocks of this length."""
        whole = length if self.num_blocks is None else self.num_blocks
        named = (*self.removed, *map(SublayerId.parse, self.biases))
        beyond = [str(sublayer) for sublayer in named if sublayer.block >= whole]
        gone = len({sublayer.block for sublayer in self.removed} - {*(self.blocks or range(length))})
        if beyond or whole != length + gone:
            found = f"it names {beyond[0]}" if beyond else f"{length} blocks are left and {gone} gone"
            raise AnatomyError(f"the record {RECORD_KEY} in the model's config is damaged: {found}, of {whole} blocks")


def _path(text: Any) -> str:
    """The path of a module, in names as Python has them; empty for the sublayer itself."""
    parts = text.split(".") if isinstance(text, str) and text else []
    if not isinstance(text, str) or not all(part.isidentifier() or part.isdecimal() for part in parts):
        raise TypeError(f"{text!r} is no path of a module")
    return text
