"""Several processes that train together: which one this is, how they agree, how what goes wrong is said once.

`torchrun` or Slurm's `srun` starts them, and each runs the same command. A recipe's batch is shared out among them, so
their number changes how fast a training is and not what it learns.
"""

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from darklens.data.part import Part
from darklens.errors import ConfigError, DarklensError, StoppedError

R = TypeVar("R")
# The first process may fit a whole store, or calibrate, while the others wait.
_PATIENCE = timedelta(days=7)
_EXCHANGE = timedelta(minutes=30)


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of a launch.

    Attributes:
        rank: Its number among all.
        world: How many there are.
        local_rank: Its number on its machine.
        local_world: How many its machine has, which is the same for all machines.
        address: Machine of the first process.
        port: Where that one listens.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = "127.0.0.1"
    port: int = 29500


def place_of(environment: Mapping[str, str]) -> Place:
    """Return where this process stands, from the variables of torchrun or of a step of Slurm; without both it is alone.

    A job script that Slurm runs without `srun` is alone, however many tasks the job may have.

    Raises:
        ConfigError: If the machines have different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        place = Place(
            rank=int(environment["RANK"]),
            world=int(environment["WORLD_SIZE"]),
            local_rank=int(environment["LOCAL_RANK"]),
            local_world=int(environment["LOCAL_WORLD_SIZE"]),
            address=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
        )
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        job = int(environment.get("SLURM_JOB_ID", "0"))
        nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1"))
        place = Place(
            rank=int(environment["SLURM_PROCID"]),
            world=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            local_world=_tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1")),
            address=environment.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes),
            port=int(environment.get("MASTER_PORT") or 15000 + job % 10000),
        )
    else:
        return Place()
    if place.world % place.local_world:
        raise ConfigError("Machines have different numbers of processes; start the same number on each.")
    return place


def _tasks_per_node(text: str) -> int:
    """Return the number in Slurm's list, such as `4(x2)`."""
    numbers = {int(number) for number in re.sub(r"\(x\d+\)", "", text).split(",")}
    if len(numbers) > 1:
        raise ConfigError(f"Slurm gives the nodes {text} tasks; ask for equally many with --ntasks-per-node.")
    return numbers.pop()


class Processes:
    """All processes of a training, as one of them sees them."""

    def __init__(self, place: Place, group: Any = None) -> None:
        self.place, self._group = place, group

    def __deepcopy__(self, memo: dict[int, Any]) -> "Processes":
        # A running mean copies the Lightning module; its copy is on the same process.
        return self

    @property
    def part(self) -> Part:
        """Which part of every batch this process has."""
        return Part(self.place.rank, self.place.world)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.place.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.place.world > 1

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of their numbers."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.place.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    def agree(self, function: Callable[[], R]) -> R:
        """Call `function` on every process and return its value, unless it went wrong on any.

        Raises:
            DarklensError: On every process, the first of those that were raised; only the first process tells it.
        """
        result: list[R] = []
        problem: DarklensError | None = None
        try:
            result.append(function())
        except DarklensError as error:
            if not self.several:
                raise
            problem = error
        told = self.gather(problem and (type(problem), f"On {socket.gethostname()}: {problem}", str(problem)))
        raised = [entry for entry in told if entry]
        if not raised:
            return result[0]
        kind, placed, plain = raised[0]
        told_once: DarklensError = kind(plain if len(raised) == len(told) else placed)
        told_once.reported_elsewhere = not self.leads
        raise told_once

    def first(self, function: Callable[[], R]) -> R | None:
        """Call `function` on the first process alone, while the others wait; they are given None.

        Raises:
            DarklensError: On every process, if it was raised on the first.
        """
        return self.agree(lambda: function() if self.leads else None)

    def in_turn(self, function: Callable[[], R]) -> R:
        """Call `function` on the first process, and when it is done on the others, which find what it left on disk."""
        done = self.first(function)
        others = self.agree(lambda: None if self.leads else function()) if self.several else None
        return done if self.leads else others  # type: ignore[return-value]  # each has called it by now

    def trainer_arguments(self) -> dict[str, Any]:
        """Return the arguments of Lightning's Trainer that say where it runs."""
        # Ours also where there is one process: Lightning would take a Slurm job's tasks for those of the training.
        launch = {"plugins": [_Launched(self.place)]}
        if not self.several:
            return launch | {"accelerator": "auto", "devices": 1}
        return launch | {
            "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
            "devices": self.place.local_world,
            "num_nodes": self.place.world // self.place.local_world,
            # Systems have parts that a stage does not train. Statistics of normalisation are the same everywhere.
            "strategy": DDPStrategy(
                find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True, timeout=_EXCHANGE
            ),
            "use_distributed_sampler": False,
        }


ALONE = Processes(Place())
_joined: list[Processes] = []


@contextmanager
def joined() -> Iterator[Processes]:
    """Meet the other processes of this launch, if there are any. Within itself it gives the same again.

    Raises:
        ConfigError: If there are fewer GPUs than processes.
        StoppedError: If others are not there, or ended early.
    """
    if _joined:
        yield _joined[0]
        return
    place = place_of(os.environ)
    if place.world == 1:
        yield ALONE
        return
    processes = _meet(place)
    _joined.append(processes)
    try:
        yield processes
    except KeyboardInterrupt:
        if processes.leads:
            raise
        raise SystemExit(130) from None
    except Exception as error:
        if not _is_loss(error):
            raise
        stopped = StoppedError(
            "Another process of this training ended, so all do; what it said is above. Give the command again with "
            "--resume to go on from the last whole epoch."
        )
        stopped.reported_elsewhere = not processes.leads
        raise stopped from error
    else:
        dist.destroy_process_group()
    finally:
        _joined.clear()


def _meet(place: Place) -> Processes:
    cuda = torch.cuda.is_available()
    if cuda and torch.cuda.device_count() < place.local_world:
        error = ConfigError(
            f"{place.local_world} processes on {socket.gethostname()} see {torch.cuda.device_count()} of its GPUs; "
            "start one a GPU, and with Slurm ask for --gpus-per-node, as --gpus-per-task hides those of the others."
        )
        error.reported_elsewhere = place.local_rank > 0
        raise error
    # Slurm does not set these, and torch listens where they say.
    os.environ |= {"MASTER_ADDR": place.address, "MASTER_PORT": str(place.port)}
    if cuda:
        torch.cuda.set_device(place.local_rank)
    try:
        # Where torchrun starts all anew, its store still has the addresses of the dead.
        store, _, _ = next(rendezvous("env://", place.rank, place.world, timeout=_EXCHANGE))
        own = PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            "nccl" if cuda else "gloo", store=own, rank=place.rank, world_size=place.world, timeout=_EXCHANGE
        )
        return Processes(place, dist.new_group(backend="gloo", timeout=_PATIENCE))
    except (dist.DistError, RuntimeError, OSError) as error:
        said = StoppedError(
            f"The {place.world} processes of this training did not all meet at {place.address}:{place.port} "
            f"({str(error).splitlines()[0]}); start as many as you say, on machines that reach that one."
        )
        said.reported_elsewhere = place.rank > 0
        raise said from error


def _is_loss(error: Exception) -> bool:
    """Tell whether an exchange failed because another process is gone; gloo has no type of its own for that."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class _Launched(ClusterEnvironment):
    """Tells Lightning what is known already: the processes run, and which one this is."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._place.address

    @property
    def main_port(self) -> int:
        return self._place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._place.world

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._place.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self._place.local_rank

    def node_rank(self) -> int:
        return self._place.rank // self._place.local_world
