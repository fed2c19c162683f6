"""What lit-prune keeps in a model's config, as `config.lit_prune`: what is gone, and how the blocks were described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_prune.anatomy.layouts import Layout
from lit_prune.errors import AnatomyError, PlanError
from lit_prune.plan import SublayerId

RECORD_KEY = "lit_prune"
RECORD_VERSION = 1


@dataclass(frozen=True)
class Record:
    """The entry, read and checked.

    Attributes:
        removed: Sublayers that are gone, by their addresses in the original model.
        blocks: Blocks of the original model that are in the list; None where none was taken out of it.
        num_blocks: Blocks of the original model, where some were taken out of the list.
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
        """Read the entry of a model's (text) config; an empty one where there is none.

        Raises:
            AnatomyError: It is damaged, or of a newer lit-prune.
        """
        data = getattr(config, RECORD_KEY, None)
        if data is None:
            return cls()
        if not isinstance(data, Mapping) or data.get("version") != RECORD_VERSION:
            raise AnatomyError(f"the model was pruned by a newer lit-prune: its config says {RECORD_KEY} = {data!r}")
        try:
            removed = tuple(SublayerId.parse(each) for each in data["removed"])
            blocks = tuple(int(each) for each in data["blocks"]) if "blocks" in data else None
            num_blocks = int(data["num_blocks"]) if blocks is not None else None
        except (KeyError, TypeError, ValueError, PlanError) as error:
            raise AnatomyError(f"the record {RECORD_KEY} in the model's config is damaged: {error!r}") from error
        return cls(removed, blocks, num_blocks, data.get("layout"), dict(data.get("biases", {})))

    def write(self, config: Any) -> None:
        """Put the entry into a config, which is saved with the model."""
        data: dict[str, Any] = {"version": RECORD_VERSION, "removed": [str(each) for each in self.removed]}
        if self.blocks is not None:
            data |= {"num_blocks": self.num_blocks, "blocks": list(self.blocks)}
        if self.layout is not None:
            data["layout"] = dict(self.layout)
        if self.biases:
            data["biases"] = dict(self.biases)
        setattr(config, RECORD_KEY, data)

    def described(self) -> Layout | None:
        """The user's layout, checked."""
        return None if self.layout is None else Layout.read(self.layout)
