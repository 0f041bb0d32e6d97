"""Rank 0 alone waits at a barrier; nothing is trained at all."""

import time

import torch.distributed as dist


def save_checkpoint() -> None:
    dist.barrier()


def watch_metrics() -> None:
    while True:
        time.sleep(0.5)


def main() -> None:
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        save_checkpoint()
    watch_metrics()


main()
