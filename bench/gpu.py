"""Everything that needs a GPU, in one go: ``make gpu``.

Runs the tests marked ``gpu``, then a comparison of one device with two on CUDA: over two GPUs
where there are two, otherwise sharing one. Results go to ``bench/results/gpu-*``.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
REPOSITORY = RESULTS.parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10; without it digits is trained")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("make gpu: torch sees no CUDA device here. Run it on a machine with one.")
        return 2
    name = torch.cuda.get_device_name(0).lower().replace(" ", "-")
    RESULTS.mkdir(exist_ok=True)
    tests = _record(
        RESULTS / f"gpu-{name}-tests.txt",
        [sys.executable, "-m", "pytest", "-m", "gpu", "-v", str(REPOSITORY / "tests" / "gpu")],
    )
    if tests != 0:
        return tests
    target = (
        ["cifar10", "--data-dir", str(arguments.data_dir)] if arguments.data_dir else ["digits"]
    )
    share = ["--share-device"] if torch.cuda.device_count() < 2 else []
    for strategy in ("ddp", "dp"):
        command = [sys.executable, "-m", "scaleproof.cli", "compare", *target, "--devices", "2"]
        code = _record(
            RESULTS / f"gpu-{name}-{strategy}.txt",
            [*command, "--strategy", strategy, "--device", "cuda", *share],
        )
        if code not in (0, 1, 3):  # any verdict is a result
            return code
    return 0


def _record(path: Path, command: list[str]) -> int:
    """Run a command, show what it prints and keep it in ``path``."""
    with path.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="")
            file.write(line)
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
