"""Several processes at one run, as torchrun starts them: they share out the work and hold the same numbers.

Outside torchrun there is one process, and everything here gives back what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from umeta.errors import Interrupted, UserError

# For a machine that hangs; one that dies is noticed at once. Others may wait for the first process to read or draw.
TIMEOUT = timedelta(hours=12)

Items = TypeVar("Items", bound=Any)
Item = TypeVar("Item")
Found = TypeVar("Found")
_alone = False  # within the work of `run_once`


class Lost(UserError):
    """Another process of the run has died, or cannot be reached."""


@contextmanager
def join_processes(device: str) -> Iterator[None]:
    """Within the block the processes that torchrun started are one run; each has a GPU of its own, or none has any.

    Raises:
        UserError: more processes than GPUs, one GPU named for all, or the others cannot be reached.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device.startswith("cuda:"):
        raise UserError(f"device '{device}': with several processes each has a GPU of its own; use --device cuda")
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if gpus:
        if local >= gpus:
            raise UserError(f"torchrun: more processes than the {gpus} GPUs here; use --nproc-per-node={gpus}")
        torch.cuda.set_device(local)  # from now on `cuda` means this one
    with _reaching():
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
    yield
    dist.destroy_process_group()


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this one, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_first() -> bool:
    """Whether this is the one process that writes files and speaks."""
    return rank() == 0


def shard(items: Items) -> Items:
    """Return this process's part of a sequence or array; parts differ by one in length at most."""
    begin, end = (part * len(items) // size() for part in (rank(), rank() + 1))
    return items[begin:end]


def sum_tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums of the processes' tensors, which have the same names and shapes; the same bits in each process.

    One message for each type of number.
    """
    out = dict(named)
    if size() == 1:
        return out
    for dtype in dict.fromkeys(value.dtype for value in named.values()):
        some = {name: value for name, value in named.items() if value.dtype == dtype}
        flat = torch.cat([value.reshape(-1) for value in some.values()])
        with _reaching():
            dist.all_reduce(flat)
        parts = flat.split([value.numel() for value in some.values()])
        out |= {name: part.view(some[name].shape) for name, part in zip(some, parts, strict=True)}
    return out


class Sum(torch.autograd.Function):
    """Sums the processes' tensors. Each one's gradient is that of the sum of all processes' losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_tensors({"x": x})["x"]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_tensors({"x": gradients[0]})["x"]


def join_shards(mine: Tensor, places: Tensor, count: int) -> Tensor:
    """Return all processes' rows [count, ...], of which `mine` belong in these places; gradients flow through it."""
    if size() == 1:
        return mine
    return Sum.apply(mine.new_zeros(count, *mine.shape[1:]).index_copy(0, places, mine))


def sum_numbers(named: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of the processes' numbers."""
    if size() == 1:
        return dict(named)
    sums = sum_tensors({name: torch.tensor(value, dtype=torch.float64) for name, value in named.items()})
    return {name: value.item() for name, value in sums.items()}


def gather(parts: Sequence[Item]) -> list[Item]:
    """Return what the processes found for their shards, in order. Tensors must be on the CPU."""
    if size() == 1:
        return list(parts)
    found: list[Any] = [None] * size()
    with _reaching():
        dist.all_gather_object(found, list(parts))
    return [item for part in found for item in part]


def any_process(flag: bool) -> bool:
    """Whether it is true in any process."""
    return sum_numbers({"flag": float(flag)})["flag"] > 0


def barrier() -> None:
    """Wait until all processes have come here."""
    any_process(False)


@contextmanager
def take_turns() -> Iterator[None]:
    """Let the first process of each machine through the block before the others, which find what it has kept there."""
    waits = size() > 1 and int(os.environ.get("LOCAL_RANK", rank())) > 0
    if waits:
        barrier()
    try:
        yield
    finally:
        if not waits:
            barrier()


def run_once(work: Callable[[], Found]) -> Found:
    """Do the work in the first process as if it were the only one; all get what it returns, or the error it raises.

    What comes back, and tensors in it, must be on the CPU.
    """
    global _alone
    if size() == 1:
        return work()
    found: list[Any] = [None, None]
    if is_first():
        _alone = True
        try:
            found[0] = work()
        except (UserError, Interrupted) as error:
            found[1] = error
        finally:
            _alone = False
    with _reaching():
        dist.broadcast_object_list(found, device=torch.device("cpu"))
    if found[1] is not None:
        raise found[1]
    return found[0]


def run_each(work: Callable[[], Found]) -> list[Found]:
    """Do the work in each process; all get what each returned, in order, or the error that one raised.

    What comes back, and tensors in it, must be on the CPU.
    """
    found: list[Found] = []
    failed: UserError | None = None
    try:
        found.append(work())
    except UserError as error:
        failed = error
    for one in gather([failed]):
        if one is not None:
            raise one
    return gather(found)


@contextmanager
def hold_together(lock: AbstractContextManager[None]) -> Iterator[None]:
    """Hold the lock in the first process until all are done with the block; all get the error where it gets none.

    Where one of them raises it does not wait for the others, which might never come.
    """
    with ExitStack() as stack:
        run_once(lambda: stack.enter_context(lock))
        yield
        barrier()


@contextmanager
def _reaching() -> Iterator[None]:
    """Turn the errors of communication into `Lost`."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise Lost(
            f"another process of this run has ended or cannot be reached ({reason}); go on with the same command and "
            "--resume"
        ) from error
