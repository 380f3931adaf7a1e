"""The command line in this process, for tests, and the tables it writes."""

import csv

import pytest

from darklens.cli import main


def darklens(*words):
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return stopped.value.code


def rows_of(path):
    """Return the rows of a table by the names of its columns."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
