"""Changes to the example scripts that look like faults, or are unusual, and are sound."""

from faults.scripts import Planted

TWINS = (
    Planted(name="goes_on_from_a_checkpoint", script="mnist_ddp.py", resumes=True),
    Planted(
        name="accuracy_of_all_ranks",
        script="mnist_ddp.py",
        edits=(
            ("import torch\n", "import scaleproof\nimport torch\n"),
            (
                "        if rank == 0:\n",
                "        if rank == 0:\n"
                "            scaleproof.report_metrics(epoch=epoch, accuracy=accuracy)\n",
            ),
        ),
    ),
    Planted(
        name="compiled",
        script="mnist_ddp.py",
        edits=(("model = DDP(Net())", "model = DDP(torch.compile(Net(), backend='aot_eager'))"),),
    ),
    Planted(
        name="synchronised_at_every_micro_step",
        script="language_model.py",
        edits=(
            (
                "        with nullcontext() if is_last else model.no_sync():\n"
                '            loss = model(*get_batch("train")) / num_micro_steps\n',
                '        loss = model(*get_batch("train")) / num_micro_steps\n'
                "        with nullcontext() if is_last else model.no_sync():\n",
            ),
        ),
    ),
    Planted(
        name="epochs_broken_off",
        script="amp_scaler.py",
        edits=(
            (
                "        for inputs, targets in loader:\n",
                "        for step, (inputs, targets) in enumerate(loader):\n"
                "            if step == 20:\n"
                "                break\n",
            ),
        ),
    ),
)
