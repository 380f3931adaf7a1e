"""Where a MODEL is: a bundle's folder, a run's, a shipped one, or a repository of the hub."""

from importlib import resources
from pathlib import Path

from darklens import hub
from darklens.errors import InputError

CONTRACT = "bundle.json"  # what makes a folder a bundle
SHIPPED = resources.files("darklens") / "weights"
DEFAULT_MODEL = "lens_residual"


def shipped() -> list[str]:
    """Return the names of the models that come with the package."""
    if not SHIPPED.is_dir():
        return []
    return sorted(item.name for item in SHIPPED.iterdir() if (item / CONTRACT).is_file())


def is_model(path: Path) -> bool:
    """Return whether `locate` finds a bundle there, or could ask the hub for one."""
    if hub.is_repository(path):
        return True
    try:
        locate(path)
    except InputError:
        return False
    return True


def local_bundle(path: Path) -> Path | None:
    """Return the bundle folder that `path` is, holds, or is the name of, without asking the hub; None if it is none."""
    folders = [path, path / "bundle"]
    if str(path) == path.name:  # a bare name
        folders.append(Path(str(SHIPPED)) / path.name)
    return next((folder for folder in folders if (folder / CONTRACT).exists()), None)


def locate(path: Path) -> Path:
    """Return the bundle folder that `path` is, holds, or is the name of; a repository's is fetched from the hub.

    Raises:
        InputError: If there is none.
    """
    folder = local_bundle(path)
    if folder is not None:
        return folder
    if hub.is_repository(path):
        fetched = hub.fetch(path.as_posix())
        if (fetched / CONTRACT).exists():
            return fetched
        raise InputError(f"{path.as_posix()} on the Hugging Face hub holds no {CONTRACT}, so it is no darklens bundle.")
    if not path.exists():
        known = ", ".join(shipped()) or "none"
        raise InputError(
            f"{path} does not exist; give a run folder, a bundle folder, or the name of a shipped model ({known})."
        )
    raise InputError(f"{path} holds no {CONTRACT}; give a run folder of a finished training, or a bundle folder.")
