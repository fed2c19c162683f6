"""What was exported, uploaded to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from lit_prune.errors import ModelError
from lit_prune.export.card import CARD_FILE

UNREACHED: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
"""What a refusal or a connection that fails raises: of whichever library huggingface_hub asks by, httpx among them."""


def require_login(repository: str) -> None:
    """Refuse with a ModelError, before long work, a name that the Hub does not take, and whoever is not logged in."""
    try:
        validate_repo_id(repository)
        HfApi().whoami()
    except HFValidationError as error:
        raise ModelError(f"{repository!r} is no name of a repository on the Hub (user/name): {error}") from error
    except LocalTokenNotFoundError as error:
        raise ModelError("nobody is logged in to the Hub: run `hf auth login`, or set HF_TOKEN") from error
    except UNREACHED as error:
        raise ModelError(f"the Hub does not know who uploads: {error}; `hf auth whoami` tells") from error


def push(path: Path, repository: str, *, private: bool, card: str | None = None) -> str:
    """Upload a folder with its card, or a file with a `card` beside it, and return the address of the repository.

    A ModelError says that the Hub refused; what was written stays.
    """
    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        if path.is_dir():
            api.upload_folder(repo_id=made.repo_id, folder_path=path, commit_message="Upload by lit-prune")
        else:
            api.upload_file(repo_id=made.repo_id, path_or_fileobj=path, path_in_repo=path.name)
        if card is not None:
            api.upload_file(repo_id=made.repo_id, path_or_fileobj=card.encode(), path_in_repo=CARD_FILE)
    except UNREACHED as error:
        raise ModelError(
            f"{path} is written, but not uploaded: {error}; try `hf upload {repository} {path}`"
        ) from error
    return str(made)
