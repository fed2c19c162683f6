"""What is known of a model's sublayers: addresses, paths, sizes, and what goes with what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from lit_prune.anatomy.layouts import PARALLEL_FORMS
from lit_prune.anatomy.parameters import SharedParameter
from lit_prune.anatomy.stubs import ResidualArgument
from lit_prune.errors import PlanError
from lit_prune.plan import ModelFacts
from lit_prune.plan.prune_plan import SublayerId


@dataclass(frozen=True)
class Part:
    """One module that is replaced when its sublayer goes.

    Attributes:
        path: Of the module in the model.
        num_parameters: That it holds, some of them perhaps with others; adapters do not count.
        stub: Makes what takes its place.
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
        parts: Every module that goes with it, norms of its own included.
        form: How it joins the residual stream; one of the words of `layouts`.
        residual: The argument with the residual, where the module adds it by itself.
        num_idle_parameters: Those of experts that a token does not go through.
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
        """Parameters of its own parts."""
        return sum(part.num_parameters for part in self.parts)


@dataclass(frozen=True)
class Anatomy:
    """The decoder blocks of a model and the sublayers that are still in them.

    Attributes:
        model_type: `config.model_type`.
        blocks_path: Module path of the list of blocks.
        num_blocks: Blocks of the original model.
        blocks: Those that are in the list, which may have lost blocks that had lost both sublayers.
        hidden_size: Width of the residual stream.
        num_parameters: All parameters, embeddings and head included, tied ones once, adapters left out.
        sublayers: Those that are present, by block, attention before FFN.
        removed: Those that are gone.
        paths: Module path of every sublayer in the list, present or gone.
        shared: By block, norms that feed both sublayers and go with the last of them.
        passes_through: Whether a block without sublayers returns its input: no norms stay behind.
        common: Parameters that are in several places.
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
        """Look up a sublayer that is present.

        Raises:
            PlanError: It was removed before, or the model never had it.
        """
        if sublayer not in self._by_id:
            why = "was removed before" if sublayer in self.removed else f"is not one of its {self.num_blocks} blocks"
            raise PlanError(f"cannot take {sublayer} out of this {self.model_type} model: it {why}")
        return self._by_id[sublayer]

    def writer_before(self, sublayer: SublayerId) -> Sublayer | None:
        """The last to write into the stream before the place of a sublayer: nothing reads it between the two.

        Raises:
            PlanError: The sublayer is not in the model.
        """
        if self[sublayer].form in PARALLEL_FORMS:
            beside = [each for each in self.sublayers if each.id.block == sublayer.block and each.id != sublayer]
            if beside:
                return beside[0]
        before = [each for each in self.sublayers if each.id < sublayer]
        return before[-1] if before else None

    def behind(self, sublayer: SublayerId) -> list[Sublayer]:
        """Those that write into the stream behind the place of a sublayer.

        Raises:
            PlanError: The sublayer is not in the model.
        """
        if self[sublayer].form in PARALLEL_FORMS:
            return [each for each in self.sublayers if each.id != sublayer and each.id.block >= sublayer.block]
        return [each for each in self.sublayers if each.id > sublayer]

    @property
    def is_stock(self) -> bool:
        """Whether transformers' own class is this model: nothing is gone, or only blocks that left the list whole."""
        return not any(each in self.paths for each in self.removed)

    def position(self, block: int) -> int:
        """Where a block of the original model is in the list."""
        return self.blocks.index(block)

    def parts(self, sublayers: Iterable[SublayerId]) -> tuple[Part, ...]:
        """Every module that goes when these go together.

        Raises:
            PlanError: One of them is not in the model.
        """
        going = dict.fromkeys(sublayers)
        own = [part for each in going for part in self[each].parts]
        left = {each.id.block for each in self.sublayers if each.id not in going}
        emptied = dict.fromkeys(each.block for each in going if each.block not in left)
        return (*own, *(part for block in emptied for part in self.shared.get(block, ())))

    def num_freed(self, sublayers: Iterable[SublayerId]) -> int:
        """Parameters that are freed when these go together.

        Raises:
            PlanError: One of them is not in the model.
        """
        parts = self.parts(sublayers)
        paths = [part.path for part in parts]
        return sum(part.num_parameters for part in parts) - sum(shared.surplus(paths) for shared in self.common)

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token goes through: all, but for experts that are not its own."""
        return self.num_parameters - sum(each.num_idle_parameters for each in self.sublayers)

    def facts(self, name: str = "", revision: str | None = None) -> ModelFacts:
        """What a plan records of the model."""
        return ModelFacts(self.model_type, self.num_blocks, self.hidden_size, self.num_parameters, name, revision)
