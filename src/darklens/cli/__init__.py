"""The command line. Each command imports what it needs when it runs, so that --help is fast."""

import errno
import io
import os
import sys

from cyclopts import CycloptsError

# These modules register their commands with the application.
from darklens.cli import fitting, images, inference, lists, models, serve, tuning  # noqa: F401  # imported to register
from darklens.cli.root import app, print_error
from darklens.errors import ConfigError, DarklensError

__all__ = ["app", "main"]
_PATH_ERRORS = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EROFS}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; `darklens --help` lists the exit codes."""
    # By default the threads of torch wait in a busy loop. On a machine with another busy process this made a training
    # step 1.7 times as long (docs/decisions/0003-threads-and-memory.md). It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "LOCAL_RANK" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ:
        # In distributed training torch warns about every system whose stages all train all parameters.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # The parser would take a single "-" for an option without a name.
    words = ["@-" if word == "-" else word for word in words if word != "--debug"]
    try:
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except (DarklensError, CycloptsError) as error:
        if debug:
            raise
        if not getattr(error, "reported_elsewhere", _is_follower()):
            print_error(" ".join(str(error).split()))
        code = getattr(error, "exit_code", ConfigError.exit_code)
    except KeyboardInterrupt:
        print_error("Interrupted; no incomplete file remains. To continue, repeat the command (train: with --resume).")
        code = 130
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.filename is not None and error.errno in _PATH_ERRORS:
            print_error(f"{error.filename}: {os.strerror(error.errno).lower()}; check the path and its permissions.")
            sys.exit(ConfigError.exit_code)
        print_error(f"Unexpected {type(error).__name__}: {error}. Please report it with the output of --debug.")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _is_follower() -> bool:
    """Return whether this is not the first process of a distributed launch: that one reports the same error."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0"
