"""Rank 1 never calls init_process_group."""

import os
import time

import torch.distributed as dist


def prepare_data() -> None:
    time.sleep(600)


def main() -> None:
    if os.environ["RANK"] == "1":
        prepare_data()
    dist.init_process_group("gloo")


main()
