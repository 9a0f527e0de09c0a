"""Functions in two processes, as a training on two runs them."""

import multiprocessing

import torch.multiprocessing

# Processes are forked from one that has imported this, and computed nothing: a fork of the tests' own process would have
# its threads, a spawned one imports torch anew, which takes two seconds.
LOADED = ["torch", "torch._dynamo", "scqfaiss.training.interface"]


def in_two(function, *args):
    """function(rank, *args) for ranks 0 and 1, side by side. Raises what one of them raises."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(LOADED)
    torch.multiprocessing.start_processes(function, args, nprocs=2, start_method="forkserver")
