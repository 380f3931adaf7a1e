"""Errors with messages for users: one sentence that says what is wrong, where, and what to do."""


class DarklensError(Exception):
    """An error that the user can fix. The command line prints the message and exits with `exit_code`."""

    exit_code = 2
    reported_elsewhere = False  # whether another process of the same training prints the message


class ConfigError(DarklensError):
    """A recipe, population or override is invalid; the message names the key."""


class InputError(DarklensError):
    """A file or folder cannot be used; the message names it."""


class FullDiskError(InputError):
    """A file cannot be written because the disk or the quota is full; the message names it. Further work is in vain."""


class DivergedError(DarklensError):
    """A training was stopped because its loss is not finite; the message says where, and what to try."""


class StoppedError(DarklensError):
    """The work was stopped from outside, for example by a killed worker; the message says how to continue."""

    exit_code = 1
