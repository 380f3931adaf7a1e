"""The processes of a distributed training: their ranks, and how they exchange values and report errors once.

`torchrun` or Slurm's `srun` starts them, and each runs the same command. They share every batch of the recipe, so their
number changes the speed of a training and not its result.
"""

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from darklens.data.batch_slice import BatchSlice
from darklens.devices import require_device
from darklens.errors import ConfigError, DarklensError, StoppedError
from darklens.files import write_bytes

R = TypeVar("R")
# The main process may fit a whole store, or calibrate, while the others wait.
_OBJECT_TIMEOUT = timedelta(days=7)
_TENSOR_TIMEOUT = timedelta(minutes=30)

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rank:
    """The position of a process in a launch.

    Attributes:
        global_rank: Index among all processes.
        world_size: Number of processes.
        local_rank: Index among the processes of the same machine.
        local_world_size: Number of processes on the machine, the same for all machines.
        main_address: Machine of the main process.
        main_port: Port on which the main process listens.
    """

    global_rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    main_address: str = "127.0.0.1"
    main_port: int = 29500


def rank_from(environment: Mapping[str, str]) -> Rank:
    """Return the rank of this process from the variables of torchrun or of a Slurm step.

    Without these variables the process is alone. So is a job script that Slurm runs without `srun`, whatever the number
    of tasks of the job.

    Raises:
        ConfigError: If the machines have different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        rank = Rank(
            global_rank=int(environment["RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment["LOCAL_RANK"]),
            local_world_size=int(environment["LOCAL_WORLD_SIZE"]),
            main_address=environment["MASTER_ADDR"],
            main_port=int(environment["MASTER_PORT"]),
        )
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        job = int(environment.get("SLURM_JOB_ID", "0"))
        nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1"))
        rank = Rank(
            global_rank=int(environment["SLURM_PROCID"]),
            world_size=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            local_world_size=_tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1")),
            main_address=environment.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes),
            main_port=int(environment.get("MASTER_PORT") or 15000 + job % 10000),
        )
    else:
        return Rank()
    if rank.world_size % rank.local_world_size:
        raise ConfigError("Machines have different numbers of processes; start the same number on each.")
    return rank


def _tasks_per_node(text: str) -> int:
    """Return the number in a list of Slurm such as `4(x2)`."""
    numbers = {int(number) for number in re.sub(r"\(x\d+\)", "", text).split(",")}
    if len(numbers) > 1:
        raise ConfigError(f"Slurm gives the nodes {text} tasks; ask for equal numbers with --ntasks-per-node.")
    return numbers.pop()


class Processes:
    """All processes of a training, from the point of view of one of them, which computes on `device`."""

    def __init__(self, rank: Rank, group: Any = None, device: torch.device = _CPU) -> None:
        self.rank, self._group, self.device = rank, group, device

    def __deepcopy__(self, memo: dict[int, Any]) -> "Processes":
        # The averaging of weights copies the Lightning module, within the same process.
        return self

    @property
    def batch_slice(self) -> BatchSlice:
        """The share of every batch that this process has."""
        return BatchSlice(self.rank.global_rank, self.rank.world_size)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank.global_rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are other processes."""
        return self.rank.world_size > 1

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.rank.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def run_on_all(self, function: Callable[[], R]) -> R:
        """Call `function` on every process and return its value, unless it fails on any process.

        Raises:
            DarklensError: On every process, the error of the lowest rank. Only the main process reports it.
        """
        result: list[R] = []
        problem: DarklensError | None = None
        try:
            result.append(function())
        except DarklensError as error:
            if not self.is_distributed:
                raise
            problem = error
        reports = self.gather(problem and (type(problem), f"On {socket.gethostname()}: {problem}", str(problem)))
        failures = [report for report in reports if report]
        if not failures:
            return result[0]
        kind, message_with_host, message = failures[0]
        common: DarklensError = kind(message if len(failures) == len(reports) else message_with_host)
        common.reported_elsewhere = not self.is_main
        raise common

    def run_on_main(self, function: Callable[[], R]) -> R | None:
        """Call `function` on the main process only, while the others wait. They get None.

        Raises:
            DarklensError: On every process, if it was raised on the main process.
        """
        return self.run_on_all(lambda: function() if self.is_main else None)

    def run_main_first(self, function: Callable[[], R]) -> R:
        """Call `function` on the main process, and then on the others, which can read the files that it wrote."""
        main_result = self.run_on_main(function)
        other_result = self.run_on_all(lambda: None if self.is_main else function()) if self.is_distributed else None
        return main_result if self.is_main else other_result  # type: ignore[return-value]  # each has called it once

    def trainer_arguments(self) -> dict[str, Any]:
        """Return the arguments of Lightning's Trainer that depend on the processes."""
        # Also for a single process: Lightning would take the tasks of a Slurm job for processes of the training.
        arguments = {"plugins": [_LaunchedEnvironment(self.rank), _AtomicCheckpoints()]}
        if not self.is_distributed:
            return arguments | {
                "accelerator": self.device.type,
                "devices": [self.device.index] if self.device.type == "cuda" else 1,
            }
        return arguments | {
            "accelerator": self.device.type,
            "devices": self.rank.local_world_size,
            "num_nodes": self.rank.world_size // self.rank.local_world_size,
            # A stage may leave parts of a system untrained. Running statistics are equal on all processes.
            "strategy": DDPStrategy(
                find_unused_parameters=True,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                timeout=_TENSOR_TIMEOUT,
            ),
            "use_distributed_sampler": False,
        }


SINGLE_PROCESS = Processes(Rank())
_current: list[Processes] = []


@contextmanager
def process_group(device: torch.device | str = "cpu") -> Iterator[Processes]:
    """Connect to the other processes of this launch, if there are any. A nested call returns the same group.

    Args:
        device: cpu, or cuda for a GPU of each process. A single process may name its GPU.

    Raises:
        ConfigError: If there is no such device, or there are fewer GPUs than processes.
        StoppedError: If other processes are missing, or ended early.
    """
    if _current:
        yield _current[0]
        return
    rank = rank_from(os.environ)
    if rank.world_size == 1:
        yield Processes(rank, device=require_device(device))
        return
    processes = _connect(rank, cuda=torch.device(device).type == "cuda")
    _current.append(processes)
    try:
        yield processes
    except KeyboardInterrupt:
        if processes.is_main:
            raise
        raise SystemExit(130) from None
    except Exception as error:
        if not _is_lost_connection(error):
            raise
        stopped = StoppedError(
            "Another process of this training ended, and its message is above. All processes stop. Repeat the command "
            "with --resume to continue from the last complete epoch."
        )
        stopped.reported_elsewhere = not processes.is_main
        raise stopped from error
    else:
        dist.destroy_process_group()
    finally:
        _current.clear()


def _connect(rank: Rank, *, cuda: bool) -> Processes:
    if cuda and torch.cuda.device_count() < rank.local_world_size:
        error = ConfigError(
            f"{rank.local_world_size} processes on {socket.gethostname()} see {torch.cuda.device_count()} of its GPUs; "
            "start one process per GPU. With Slurm use --gpus-per-node, since --gpus-per-task hides the other GPUs."
        )
        error.reported_elsewhere = rank.local_rank > 0
        raise error
    # torch reads these, and Slurm does not set them.
    os.environ |= {"MASTER_ADDR": rank.main_address, "MASTER_PORT": str(rank.main_port)}
    if cuda:
        torch.cuda.set_device(rank.local_rank)
    try:
        # After a restart by torchrun the store still has the addresses of the killed processes.
        store, _, _ = next(rendezvous("env://", rank.global_rank, rank.world_size, timeout=_TENSOR_TIMEOUT))
        prefixed = PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=prefixed,
            rank=rank.global_rank,
            world_size=rank.world_size,
            timeout=_TENSOR_TIMEOUT,
        )
        device = torch.device("cuda", rank.local_rank) if cuda else torch.device("cpu")
        return Processes(rank, dist.new_group(backend="gloo", timeout=_OBJECT_TIMEOUT), device)
    except (dist.DistError, RuntimeError, OSError) as error:
        failure = StoppedError(
            f"The {rank.world_size} processes of this training could not all connect to "
            f"{rank.main_address}:{rank.main_port} ({str(error).splitlines()[0]}); check that all of them started, on "
            "machines that reach this address."
        )
        failure.reported_elsewhere = rank.global_rank > 0
        raise failure from error


def _is_lost_connection(error: Exception) -> bool:
    """Return whether an exchange failed because another process ended; gloo has no error type for that."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class _AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that it is complete at any time.

    Lightning writes it to the system's temporary folder and copies it, if that is on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getbuffer())


class _LaunchedEnvironment(ClusterEnvironment):
    """Tells Lightning that the processes are running, and the rank of this one."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self._rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._rank.main_address

    @property
    def main_port(self) -> int:
        return self._rank.main_port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._rank.world_size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._rank.global_rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self._rank.local_rank

    def node_rank(self) -> int:
        return self._rank.global_rank // self._rank.local_world_size
