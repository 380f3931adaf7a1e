"""Bundles in repositories of the Hugging Face hub: `owner/name`, or `owner/name@revision`.

Only a bundle's own files are fetched, weights as safetensors and a contract as JSON, so nothing in a repository can be
executed. They are kept in the hub's usual cache (HF_HOME), from which they are read where there is no network or
HF_HUB_OFFLINE is set.
"""

import re
import sys
from functools import cache
from pathlib import Path, PurePath

from darklens.errors import ConfigError, InputError

FILES = {"bundle.json": 10_000_000, "model.safetensors": 4_000_000_000, "ood.safetensors": 1_000_000_000}
"""What is fetched, and the most bytes that each may have."""

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"({_NAME}/{_NAME})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?")


def is_repository(name: PurePath | str) -> bool:
    """Return whether a name that is nothing on this disk could be a repository's."""
    text = PurePath(name).as_posix()
    return not Path(name).exists() and ".." not in text and _REPOSITORY.fullmatch(text) is not None


@cache
def fetch(name: str) -> Path:
    """Return the folder in the cache that holds the bundle of a repository.

    Args:
        name: `owner/name`, or `owner/name@revision` with a branch, tag or commit.

    Raises:
        ConfigError: If the extra `hub` is not installed.
        InputError: If there is no such repository or revision, its files are enormous, or it is not in the cache and
            the hub cannot be reached.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ModuleNotFoundError:
        raise ConfigError(
            f"{name} is no folder here; to load it from the Hugging Face hub: pip install 'darklens[hub]'."
        ) from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    match = _REPOSITORY.fullmatch(name)
    assert match is not None
    repository, revision = match[1], match[2]
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        for file in info.siblings or []:
            if (file.size or 0) > FILES.get(file.rfilename, float("inf")):
                raise InputError(
                    f"{name}: its {file.rfilename} has {(file.size or 0) / 1e9:.1f} GB; that is no bundle."
                )
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except GatedRepoError:
        raise InputError(f"{name}: its owner must grant access; ask on its page, then run `hf auth login`.") from None
    except RevisionNotFoundError:
        raise InputError(f"{repository} has no revision {revision}; see its page for branches and tags.") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(
            f"{name} is no folder here and no repository of the Hugging Face hub that you may read; check the name "
            "(`darklens models` lists what is shipped; private ones need `hf auth login`)."
        ) from None
    except InputError:
        raise
    except Exception as error:  # no network, offline mode, a server in trouble: what is in the cache still serves
        why = type(error).__name__
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES), local_files_only=True))
    except Exception:
        raise InputError(
            f"{name} is no folder here, is not in the cache, and the Hugging Face hub cannot be reached ({why}); go "
            "online, or give a bundle folder."
        ) from None
