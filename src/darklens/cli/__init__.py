"""The command line. Heavy imports happen inside the command that needs them, so that --help is instant."""

import os
import sys

from cyclopts import CycloptsError

# Each puts its commands into the application.
from darklens.cli import images, inference, lists, models, serve, tuning  # noqa: F401  # imported for that
from darklens.cli.root import app, complain
from darklens.errors import ConfigError, DarklensError

__all__ = ["app", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that the top-level help states."""
    # torch's threads wait by spinning unless told otherwise before it is imported; beside another busy process that
    # made a training step 1.7 times as long (docs/decisions/0003-threads-and-memory.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "LOCAL_RANK" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ:
        # Beside others, torch warns of every system whose stages all train all of it.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # The parser takes a single "-" for an option without a name.
    words = ["@-" if word == "-" else word for word in words if word != "--debug"]
    try:
        code = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except (DarklensError, CycloptsError) as error:
        if debug:
            raise
        if not getattr(error, "told_elsewhere", _follows()):
            complain(" ".join(str(error).split()))
        code = getattr(error, "exit_code", ConfigError.exit_code)
    except KeyboardInterrupt:
        complain("Interrupted; nothing half-written was left. Give the command again (train: with --resume) to go on.")
        code = 130
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        if debug:
            raise
        complain(f"Unexpected {type(error).__name__}: {error}. Please report it with the output of --debug.")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _follows() -> bool:
    """Tell whether another process of the same launch has the same words before it, and so the same complaint."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0"
