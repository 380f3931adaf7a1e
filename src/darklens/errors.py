"""What a user sees when something is wrong: one sentence that says what, where, and what to do."""


class DarklensError(Exception):
    """A problem the user can mend. The command line prints the message and exits with `exit_code`."""

    exit_code = 2
    told_elsewhere = False  # by another process of the same training


class ConfigError(DarklensError):
    """A recipe, population or override is wrong; the message names the key."""


class InputError(DarklensError):
    """A file or folder cannot be used; the message names it."""


class StoppedError(DarklensError):
    """Something from outside ended the work, such as a killed worker; the message says how to go on."""

    exit_code = 1
