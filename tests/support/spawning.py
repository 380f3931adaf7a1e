"""Processes that tests start and kill."""

import logging
import os
import socket
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, parent_process
from types import SimpleNamespace

import pytest


def prepared_processes(*modules):
    """Return a context whose processes start with modules imported, with torch and Lightning unless they are named.

    The first call in a session decides. No thread of theirs is running.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(modules or ["darklens.training.run"]))
    return context


def start_code(code):
    """Start Python code in a process that has imported torch and no module of darklens."""
    fresh = "import sys; [sys.modules.pop(name) for name in list(sys.modules) if name.startswith('darklens')]\n"
    process = prepared_processes("torch").Process(target=exec, args=(fresh + code, {}))
    process.start()
    return process


@contextmanager
def prepared_pools(method=prepared_processes):
    """Let pools of workers start from the processes of a context, without the seconds of `spawn` for each worker."""
    context = SimpleNamespace(get_context=lambda _: method(), parent_process=parent_process)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("darklens.executors.multiprocessing", context)
        yield


@contextmanager
def prepared_readers(*modules):
    """Let servers start the processes that read files as prepared processes, see `prepared_processes`."""
    with pytest.MonkeyPatch.context() as patch:
        context = SimpleNamespace(get_context=lambda _: prepared_processes(*modules))
        patch.setattr("darklens.serve.reader_processes.multiprocessing", context)
        yield


def free_port():
    """Return the number of a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def dask_cluster(n_workers):
    """Run a Dask cluster whose workers are prepared processes."""
    import dask
    from distributed import LocalCluster

    prepared_processes()
    forkserver.ensure_running()  # before Dask starts it without torch
    quiet = {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        LocalCluster(n_workers=n_workers, threads_per_worker=1, **quiet) as cluster,
    ):
        yield cluster


def start_command(words, errors):
    """Start `darklens WORDS` in a prepared process and a session of its own; standard error goes to a file."""
    process = prepared_processes().Process(target=_run_command, args=(list(map(str, words)), str(errors)))
    process.start()
    return process


def _run_command(words, errors):
    import signal

    import torch

    from darklens.cli import main

    os.setsid()
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell's background jobs ignore it
    torch.set_num_threads(1)  # so that workers may be forks
    with prepared_pools(lambda: get_context("fork")), prepared_readers("darklens.serve.reader_processes"):
        main(words)
