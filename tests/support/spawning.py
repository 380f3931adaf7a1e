"""Processes that tests start and kill."""

from multiprocessing import get_context


def prepared_processes():
    """Return a context whose processes start with torch and Lightning imported and no thread of theirs running."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["darklens.training.run"])
    return context
