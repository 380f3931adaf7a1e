"""The files of a multipart request, with names that are safe to show."""

from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from darklens.serve.refusal import Refusal
from darklens.serve.service import Upload
from darklens.serve.settings import Settings

FIELD = "files"
_LONGEST_NAME = 200


async def uploads(request: Request, settings: Settings) -> list[Upload]:
    """Return the files of a request.

    Raises:
        Refusal: 415 if it is not multipart, 422 if it has no files or other fields, 413 if it has too many.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refusal(415, f"Send files as multipart/form-data, in the field {FIELD!r}.")
    try:
        async with request.form(max_files=settings.max_files, max_fields=1) as form:
            return [await _upload(key, value) for key, value in form.multi_items()] or _none()
    except HTTPException as error:  # of Starlette's parser
        if "Too many files" in str(error.detail):
            raise Refusal(413, f"A request may have {settings.max_files} files; send the others in a second.") from None
        raise Refusal(422, f"The multipart body cannot be read ({str(error.detail).rstrip('.')}).") from None


async def _upload(key: str, value: Any) -> Upload:
    if key != FIELD:
        raise Refusal(422, f"{key[:_LONGEST_NAME]!r}: there is no such field; send files as {FIELD!r}.", field=FIELD)
    if not isinstance(value, UploadFile):
        raise Refusal(422, f"{FIELD}: each part needs a file name; send it as a file.", field=FIELD)
    return Upload(shown(value.filename or ""), await value.read())


def _none() -> list[Upload]:
    raise Refusal(422, f"{FIELD}: there is no file in the request.", field=FIELD)


def shown(name: str) -> str:
    """Return the last part of a file's name without characters that do not print; it is shown, and never opened."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    printable = "".join(c if c.isprintable() else "?" for c in last).strip()
    return printable[:_LONGEST_NAME] or "file"
