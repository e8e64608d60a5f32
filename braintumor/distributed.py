"""Several processes that train one network, as torchrun starts them: which one this is, and what they exchange."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from braintumor.errors import UserError

# Where SLURM, Open MPI, the other MPIs and other launchers say how many processes they have started.
STARTED = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE"


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together; on its own where nothing else was started.

    Attributes
    ----------
    rank : int
        Of this process, from 0; the first one writes the files.
    count : int
        How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @property
    def steps_to_answer(self) -> int:
        """Steps that an answer of `greatest` may take: gloo's goes from one process to the next, twice round."""
        return -(-self.count // 8)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' tensors of one shape."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def greatest(self, number: Callable[[], int]) -> Callable[[], int]:
        """Begin to find the greatest of all processes' numbers, and return what waits for it.

        It goes on beside what the processes do meanwhile, and no GPU is asked.
        """
        if self.count == 1:
            return number
        box = torch.tensor(number())
        work = dist.all_reduce(box, dist.ReduceOp.MAX, async_op=True)

        def wait() -> int:
            work.wait()
            return int(box)

        return wait

    def meet(self) -> None:
        """Wait until all processes have come here."""
        self.greatest(int)()

    def gather(self, values: Tensor) -> Tensor:
        """Return all processes' tensors of one shape one after the other, along the first axis."""
        if self.count == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values)
        return torch.cat(parts)

    def equalise(self, model: nn.Module) -> None:
        """Give every process the first one's weights and buffers; batch norm's averages differ otherwise."""
        if self.count > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, 0)

    def share(self, value: object) -> object:
        """Return the first process's value in all of them."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


ALONE = Ranks()


def check_launcher() -> None:
    """Refuse to be one of several processes that torchrun has not started: each of them would train on its own.

    Raises
    ------
    UserError
    """
    if dist.is_torchelastic_launched():
        return
    for name in STARTED:
        if os.environ.get(name, "") not in ("", "1"):
            raise UserError(
                f"train.launcher: {os.environ[name]} processes were started ({name}), but not by torchrun: "
                f"each would train alone; see docs/scaling.md for the launcher, or, if this is the only one, "
                f"unset {name}"
            )


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun has started, and leave them at the end; alone without torchrun.

    Where another process is gone, this one gives torchrun the time to end it, and ends with a line that says so.

    Parameters
    ----------
    device : torch.device
        Of this process: what lies on GPUs is exchanged through NCCL, what lies on CPUs through gloo.

    Raises
    ------
    UserError
        If something else than torchrun has started several processes, see `check_launcher`.
    """
    check_launcher()
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        yield Ranks(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not means_lost_process(error):
            raise
        # Torchrun looks several times a second, says which process is gone, and ends the others here by then.
        time.sleep(5)
        reason = str(error).partition("\n")[0]
        sys.exit(f"error: the processes that train together cannot reach each other: {reason}")
    else:  # one that fails just ends: leaving can wait for others without end
        dist.destroy_process_group()


def means_lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another of the processes cannot be reached: mostly it is gone."""
    # Of gloo, of TCP's other users, and below of NCCL and of the store where processes find each other.
    signs = (
        "gloo/transport/tcp/pair",
        "gloo/transport/tcp/unbound_buffer",
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
    )
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def starts_first() -> bool:
    """Whether this process is, or will be, the first of those that train together, before they have joined."""
    return os.environ.get("RANK", "0") == "0"


def place_on_machine() -> tuple[int, int]:
    """Return the number of this process on its machine, from 0, and how many torchrun has started there."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
