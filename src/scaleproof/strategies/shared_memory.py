"""Averaging gradients between ranks of one host through shared memory: a DDP communication hook.

gloo sends every gradient through the loopback network: two copies into the kernel and two out of
it, on cores that are busy computing. Here each rank's bucket itself lies in shared memory. Every
rank averages one part of it over all ranks and writes the result to all of them, between two
barriers. Each part is computed once, so all ranks end up with the same bytes.

Linux only: it maps other ranks' memory through ``/proc``, and meets them at abstract sockets.
"""

import os
import secrets
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

BLOCK_SIZE = 1 << 16
"""Numbers averaged at a time: 256 KiB of fp32, so that two of them fit a core's cache."""

SHARED_MEMORY_FOLDER = Path("/dev/shm")


def can_share_memory(num_bytes: int) -> bool:
    """Whether *every* rank has room for ``num_bytes`` of shared memory, twice to be safe.

    A collective: containers often have 64 MB there, and writing past it kills a process.
    """
    has_room = False
    if sys.platform == "linux" and SHARED_MEMORY_FOLDER.is_dir():
        disk = os.statvfs(SHARED_MEMORY_FOLDER)
        has_room = disk.f_bavail * disk.f_frsize >= 2 * num_bytes * dist.get_world_size()
    votes = torch.tensor([int(has_room)])
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return bool(votes.item())


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _SharedBucket:
    """One bucket: its address in this process, and every rank's copy of it."""

    address: int
    of_ranks: tuple[Tensor, ...]


@final
class SharedMemoryAverage:
    """State and hook: ``model.register_comm_hook(None, SharedMemoryAverage(60.0).average)``.

    Made by all ranks together, after the process group.
    """

    def __init__(self, timeout_s: float) -> None:
        self._buckets: dict[int, _SharedBucket] = {}
        self._meeting = _Meeting(timeout_s)

    def average(
        self,
        _state: object,
        bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
    ) -> Future[Tensor]:
        """Average one bucket over all ranks, in place."""
        buffer = bucket.buffer()
        self._average(self._shared(bucket.index(), buffer))
        future: Future[Tensor] = Future()
        future.set_result(buffer)
        return future

    def close(self) -> None:
        self._meeting.close()

    def _average(self, bucket: _SharedBucket) -> None:
        num_ranks, rank = dist.get_world_size(), dist.get_rank()
        size = len(bucket.of_ranks[0])
        start, stop = rank * size // num_ranks, (rank + 1) * size // num_ranks
        self._meeting.wait_for_all()  # every rank has filled its bucket
        for low in range(start, stop, BLOCK_SIZE):
            blocks = [of_rank[low : min(low + BLOCK_SIZE, stop)] for of_rank in bucket.of_ranks]
            mean = blocks[0]  # in place: half the memory traffic of a new tensor
            for block in blocks[1:]:
                mean += block
            mean /= num_ranks
            for block in blocks[1:]:
                block.copy_(mean)
        self._meeting.wait_for_all()  # every part has been written

    def _shared(self, index: int, buffer: Tensor) -> _SharedBucket:
        """The bucket in shared memory; it is moved there when it is first seen.

        DDP makes new buckets after its first step, in the order in which gradients arrive, on all
        ranks alike: then the address changes and they are moved again.
        """
        known = self._buckets.get(index)
        if known is None or known.address != buffer.data_ptr():
            file_descriptor, _ = buffer.untyped_storage()._share_fd_cpu_()
            of_ranks = tuple(
                torch.from_file(
                    f"/proc/{pid}/fd/{descriptor}",
                    shared=True,
                    size=buffer.numel(),
                    dtype=buffer.dtype,
                )
                for pid, descriptor in _gather([os.getpid(), file_descriptor])
            )
            known = _SharedBucket(address=buffer.data_ptr(), of_ranks=of_ranks)
            self._buckets[index] = known
            self._meeting.wait_for_all()  # nobody closes its descriptor before all have mapped it
        return known


@final
class _Meeting:
    """A barrier of the ranks of one host, cheaper than one over the network.

    Every rank sends every other a datagram with the number of the meeting. A rank can be at most
    one meeting ahead, because that one can't end without the others.
    """

    _MESSAGE = struct.Struct("<q")

    def __init__(self, timeout_s: float) -> None:
        token = secrets.randbits(62)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(_address(token))
        self._socket.settimeout(timeout_s)
        tokens = [others[0] for others in _gather([token])]
        self._peers = [_address(other) for other in tokens if other != token]
        self._number = 0
        self._num_early = 0

    def wait_for_all(self) -> None:
        """Return when every rank has come to this meeting.

        Raises ``RuntimeError``, worded like a collective's, when one has not after the timeout.
        """
        self._number += 1
        missing = len(self._peers) - self._num_early
        self._num_early = 0
        try:
            for peer in self._peers:
                self._socket.sendto(self._MESSAGE.pack(self._number), peer)
            while missing:
                (number,) = self._MESSAGE.unpack(self._socket.recv(self._MESSAGE.size))
                if number == self._number:
                    missing -= 1
                else:
                    self._num_early += 1
        except TimeoutError as error:
            raise RuntimeError(
                f"Timed out waiting {self._socket.gettimeout():g} s for {missing} of "
                f"{len(self._peers)} other ranks to bring their gradients"
            ) from error
        except ConnectionRefusedError as error:
            raise RuntimeError("Connection closed by peer: another rank has ended") from error

    def close(self) -> None:
        self._socket.close()


def _address(token: int) -> str:
    """An abstract address (Linux): it leaves no file and ends with its socket."""
    return f"\0scaleproof-{token:016x}"


def _gather(numbers: list[int]) -> list[list[int]]:
    """Every rank's ``numbers``, by rank."""
    mine = torch.tensor(numbers)
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return [tensor.tolist() for tensor in gathered]
