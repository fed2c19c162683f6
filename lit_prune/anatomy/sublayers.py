"""What is known of a model's sublayers: addresses, paths, sizes, and what goes with what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from torch import nn

from lit_prune.anatomy.layouts import PARALLEL_FORMS
from lit_prune.anatomy.parameters import SharedParameter
from lit_prune.anatomy.stubs import ResidualArgument
from lit_prune.errors import PlanError
from lit_prune.plan import ModelFacts, SublayerId


@dataclass(frozen=True)
class Part:
    """One module that is replaced when its sublayer goes.

    Attributes:
        path: Module path in the model.
        num_parameters: Parameters that the module holds, perhaps together with other modules; adapters do not count.
        stub: Makes the module that takes its place.
    """

    path: str
    num_parameters: int
    stub: Callable[[], nn.Module] = nn.Identity


@dataclass(frozen=True)
class Sublayer:
    """One attention or FFN sublayer that is still in the model.

    Attributes:
        id: Address in the original model.
        path: Module path of the attention or FFN (of its last projection where the FFN is written out in the block).
        output: Path of the module whose output joins the residual stream: the same, or a norm behind it.
        parts: Every module that goes with the sublayer, norms of its own included.
        form: How the sublayer joins the residual stream, in one of the words of `layouts`.
        residual: The argument with the residual, where the module adds that by itself; else None.
        num_idle_parameters: Parameters of experts that a token does not go through.
    """

    id: SublayerId
    path: str
    output: str
    parts: tuple[Part, ...]
    form: str
    residual: ResidualArgument | None = None
    num_idle_parameters: int = 0

    @property
    def num_parameters(self) -> int:
        """Parameters of the sublayer's own parts."""
        return sum(part.num_parameters for part in self.parts)


@dataclass(frozen=True)
class Anatomy:
    """The decoder blocks of a model and the sublayers that are still in them.

    Methods that are asked for a sublayer raise a PlanError where it is not in the model.

    Attributes:
        model_type: `config.model_type` of the decoder.
        blocks_path: Module path of the list of blocks.
        num_blocks: Number of blocks in the original model.
        blocks: Numbers of the blocks in the list, which may lack blocks that had lost both sublayers.
        hidden_size: Width of the residual stream.
        num_parameters: All parameters, embeddings and head included, tied ones once, adapters left out.
        sublayers: Sublayers that are present, by block, attention before FFN.
        removed: Addresses of the sublayers that are gone.
        paths: Module path of every sublayer in the list, present or gone.
        shared: Norms that feed both sublayers of a block, by the block; they go with the last of the two.
        passes_through: Whether a block without sublayers returns its input: no norms stay behind.
        common: Parameters that are in several places of the model.
    """

    model_type: str
    blocks_path: str
    num_blocks: int
    blocks: tuple[int, ...]
    hidden_size: int
    num_parameters: int
    sublayers: tuple[Sublayer, ...]
    removed: tuple[SublayerId, ...]
    paths: Mapping[SublayerId, str]
    shared: Mapping[int, tuple[Part, ...]]
    passes_through: bool
    common: tuple[SharedParameter, ...] = ()

    @cached_property
    def _by_id(self) -> dict[SublayerId, Sublayer]:
        return {sublayer.id: sublayer for sublayer in self.sublayers}

    def __contains__(self, sublayer: SublayerId) -> bool:
        return sublayer in self._by_id

    def __getitem__(self, sublayer: SublayerId) -> Sublayer:
        if sublayer not in self._by_id:
            why = "was removed before" if sublayer in self.removed else f"is not one of its {self.num_blocks} blocks"
            raise PlanError(f"cannot take {sublayer} out of this {self.model_type} model: it {why}")
        return self._by_id[sublayer]

    @property
    def ids(self) -> tuple[SublayerId, ...]:
        """Addresses of the sublayers that are present."""
        return tuple(self._by_id)

    def block_list(self, model: nn.Module) -> nn.ModuleList:
        """The list of blocks of the model that this is the anatomy of."""
        return cast(nn.ModuleList, model.get_submodule(self.blocks_path))

    def position(self, block: int) -> int:
        """Where a block of the original model is in the list."""
        return self.blocks.index(block)

    def writer_before(self, sublayer: SublayerId) -> Sublayer | None:
        """The last sublayer to write into the stream before the place of another: nothing reads it between the two."""
        before = [other for other in self.sublayers if other.id < sublayer]
        if self[sublayer].form in PARALLEL_FORMS:
            before += [other for other in self.behind(sublayer) if other.id.block == sublayer.block]
        return before[-1] if before else None

    def behind(self, sublayer: SublayerId) -> list[Sublayer]:
        """Sublayers that write into the stream behind the place of this one."""
        if self[sublayer].form in PARALLEL_FORMS:
            return [other for other in self.sublayers if other.id != sublayer and other.id.block >= sublayer.block]
        return [other for other in self.sublayers if other.id > sublayer]

    @property
    def is_stock(self) -> bool:
        """Whether transformers' own class is this model: nothing is gone, or only blocks that left the list whole."""
        return not any(sublayer in self.paths for sublayer in self.removed)

    def parts(self, sublayers: Iterable[SublayerId]) -> tuple[Part, ...]:
        """Every module that goes when these sublayers go together."""
        going = dict.fromkeys(sublayers)
        own = [part for sublayer in going for part in self[sublayer].parts]
        left = {sublayer.block for sublayer in self._by_id if sublayer not in going}
        emptied = dict.fromkeys(sublayer.block for sublayer in going if sublayer.block not in left)
        return (*own, *(part for block in emptied for part in self.shared.get(block, ())))

    def num_freed(self, sublayers: Iterable[SublayerId]) -> int:
        """Parameters that are freed when these sublayers go together."""
        parts = self.parts(sublayers)
        paths = [part.path for part in parts]
        return sum(part.num_parameters for part in parts) - sum(shared.surplus(paths) for shared in self.common)

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token goes through: all but those of experts that are not its own."""
        return self.num_parameters - sum(sublayer.num_idle_parameters for sublayer in self.sublayers)

    def facts(self, name: str = "", revision: str | None = None) -> ModelFacts:
        """What a plan records of the model."""
        return ModelFacts(self.model_type, self.num_blocks, self.hidden_size, self.num_parameters, name, revision)
