"""The example scripts, and what is planted in them, in text: one fault, or a change that is none.

Each fault is silent: the script ends well and its loss looks normal. Its sound twin is the example.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import final

EXAMPLES = Path(__file__).parents[2] / "examples"

ARGUMENTS = {
    "mnist_ddp.py": "--epochs 3",
    "resnet_cifar10.py": "--epochs 2 --train-size 512",
    "gan.py": "--epochs 3",
    "language_model.py": "--max-iters 12 --eval-interval 6",
    "fsdp2.py": "--epochs 3",
    "handwritten_allreduce.py": "--epochs 3",
    "spawn_ddp.py": "--epochs 6",
    "single_process.py": "--epochs 3",
    "amp_scaler.py": "--epochs 3",
    "iterable_stream.py": "--epochs 3 --epoch-size 1024",
    "data_parallel.py": "--epochs 3",
}
"""Every example, with what makes it short."""

STARTS_ITSELF = {
    "handwritten_allreduce.py",
    "spawn_ddp.py",
    "single_process.py",
    "data_parallel.py",
}
"""Started with plain ``python``; the others by torchrun."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """An example with ``edits``: (old, new) pairs of text; every old one is in it exactly once.

    ``check`` names the fault; it is empty when there is none. ``words`` must be in the finding's
    sentence, and so must the script's line that begins with ``at``, as ``file.py:12``.
    ``arguments`` are instead of the example's; ``resumes``: it goes on from a checkpoint.
    """

    name: str
    script: str
    edits: tuple[tuple[str, str], ...] = ()
    check: str = ""
    words: tuple[str, ...] = ()
    at: str = ""
    arguments: str = ""
    resumes: bool = False

    def plant(self) -> str:
        """The script's text with the edits made."""
        text = (EXAMPLES / self.script).read_text()
        for old, new in self.edits:
            assert text.count(old) == 1, f"{self.name}: {old!r} is there {text.count(old)} times"
            text = text.replace(old, new)
        return text

    @property
    def where(self) -> str:
        """``file.py:12``: the line that begins with ``at``; empty without one."""
        if not self.at:
            return ""
        lines = [line.strip() for line in self.plant().splitlines()]
        numbers = [n for n, line in enumerate(lines, start=1) if line.startswith(self.at)]
        assert len(numbers) == 1, f"{self.name}: {self.at!r} begins lines {numbers}"
        return f"{self.script}:{numbers[0]}"


FAULTS = (
    Planted(
        name="no_set_epoch",
        script="mnist_ddp.py",
        edits=(("        sampler.set_epoch(epoch)\n", ""),),
        check="same-order-every-epoch",
        words=("rank 0", "750 samples"),
        at="train_loader = DataLoader(",
    ),
    Planted(
        name="no_distributed_sampler",
        script="mnist_ddp.py",
        edits=(("batch_size=args.batch_size, sampler=sampler)", "args.batch_size, shuffle=True)"),),
        check="overlapping-samples",
        words=("rank",),
        at="train_loader = DataLoader(",
    ),
    Planted(
        name="double_counted_test_samples",
        script="mnist_ddp.py",
        edits=(
            (
                "test_part = Subset(test_set, range(rank, len(test_set), world_size))",
                "test_sampler = DistributedSampler(test_set, shuffle=False)",
            ),
            (
                "DataLoader(test_part, batch_size=128)",
                "DataLoader(test_set, batch_size=128, sampler=test_sampler)",
            ),
        ),
        check="padded-evaluation",
        words=("298", "297"),
        at="test_loader = DataLoader(",
    ),
    Planted(
        name="accuracy_of_rank_0",
        script="mnist_ddp.py",
        edits=(
            ("    dist.all_reduce(counts)\n", ""),
            ("import torch\n", "import scaleproof\nimport torch\n"),
            (
                "        if rank == 0:\n",
                "        if rank == 0:\n"
                "            scaleproof.report_metrics(epoch=epoch, accuracy=accuracy)\n",
            ),
        ),
        check="metric-from-one-shard",
        words=("rank 0",),
    ),
    Planted(
        name="resume_without_sampler_epoch",
        script="mnist_ddp.py",
        edits=(("set_epoch(epoch)", "set_epoch(epoch - first_epoch)"),),
        check="resume-repeats-samples",
        words=("epoch 0",),
        at="train_loader = DataLoader(",
        resumes=True,
    ),
    Planted(
        name="one_seed_for_all_workers",
        script="resnet_cifar10.py",
        edits=(("torch.manual_seed(args.seed + rank)", "torch.manual_seed(args.seed)"),),
        check="identical-augmentation",
        words=("ranks 0 and 1",),
        at="train_loader = DataLoader(",
    ),
    Planted(
        name="own_batch_norm_statistics",
        script="resnet_cifar10.py",
        edits=(("        average_batch_norm(model.module)\n", ""),),
        check="buffer-drift",
        words=("rank 1", "running_"),
    ),
    Planted(
        name="generator_past_its_wrapper",
        script="gan.py",
        edits=(("generator(torch.randn", "generator.module(torch.randn"),),
        check="unsynced-gradients",
        words=("rank 0", "6 of 6 tensors"),
        at="optimizer_g = ",
    ),
    Planted(
        name="same_batches_on_every_rank",
        script="language_model.py",
        edits=(
            (
                "generator = torch.Generator().manual_seed(1337 + rank)",
                "generator = torch.Generator().manual_seed(1337)",
            ),
        ),
        check="overlapping-samples",
        words=("ranks 0 and 1",),
    ),
    Planted(
        name="one_seed_for_dropout",
        script="language_model.py",
        edits=(("torch.manual_seed(1337 + rank)\n", "torch.manual_seed(1337)\n"),),
        check="identical-dropout",
        words=("ranks 0 and 1",),
    ),
    Planted(
        name="never_the_last_micro_step",
        script="language_model.py",
        edits=(
            (
                "micro_step == num_micro_steps - 1",
                "micro_step == num_micro_steps",
            ),
        ),
        check="unsynced-gradients",
        words=("rank 0", "28 of 28 tensors", "wte.weight"),
    ),
    Planted(
        name="optimizer_before_sharding",
        script="fsdp2.py",
        edits=(
            (
                "    for layer in model.layers:\n        fully_shard",
                "    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)\n"
                "    for layer in model.layers:\n        fully_shard",
            ),
            (
                "    fully_shard(model, mesh=mesh)\n"
                "    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)\n",
                "    fully_shard(model, mesh=mesh)\n",
            ),
        ),
        check="frozen-parameters",
        at="optimizer = ",
    ),
    Planted(
        name="split_twice",
        script="fsdp2.py",
        edits=(
            (
                "    sampler = DistributedSampler(data_set, seed=0)\n",
                "    part = torch.utils.data.Subset(data_set, range(rank, 1024, world_size))\n"
                "    sampler = DistributedSampler(part, seed=0)\n",
            ),
            ("DataLoader(data_set,", "DataLoader(part,"),
        ),
        check="missing-samples",
        words=("handed to no rank",),
        at="loader = DataLoader(",
    ),
    Planted(
        name="no_broadcast",
        script="handwritten_allreduce.py",
        edits=(
            (
                "    for param in model.parameters():\n        dist.broadcast(param.data, src=0)\n",
                "",
            ),
        ),
        check="replica-drift",
        words=("rank 1",),
    ),
    Planted(
        name="divided_twice",
        script="handwritten_allreduce.py",
        edits=(
            (
                "            average_gradients(model)\n",
                "            average_gradients(model)\n"
                "            for param in model.parameters():\n"
                "                if param.grad is not None:\n"
                "                    param.grad /= size\n",
            ),
        ),
        check="misweighted-gradients",
        words=("0.25",),
    ),
    Planted(
        name="clipped_by_every_rank",
        script="handwritten_allreduce.py",
        edits=(
            (
                "            average_gradients(model)\n",
                "            nn.utils.clip_grad_norm_(model.parameters(), 0.2)\n"
                "            average_gradients(model)\n",
            ),
        ),
        check="clipped-before-reduction",
        words=("rank",),
    ),
    Planted(
        name="shares_of_unlike_devices",
        script="handwritten_allreduce.py",
        edits=(
            ("[1.0 / size] * size", "[0.75, 0.25]"),
            ("args.batch_size // size", "int(args.batch_size * [0.75, 0.25][rank])"),
        ),
        check="uneven-batches",
        words=("96 and 32 samples on ranks 0 and 1",),
    ),
    Planted(
        name="another_split_on_every_rank",
        script="spawn_ddp.py",
        edits=(
            (
                "generator=torch.Generator().manual_seed(args.seed)",
                "generator=torch.Generator().manual_seed(args.seed + rank)",
            ),
        ),
        check="train-validation-overlap",
        words=("ranks 0 and 1", "a split of its own"),
    ),
    Planted(
        name="plateau_of_the_last_batch",
        script="spawn_ddp.py",
        edits=(("scheduler.step(val_loss)", "scheduler.step(loss.item())"),),
        check="schedule-drift",
        words=("rank 1",),
        arguments="--epochs 8 --lr-patience 0",
    ),
    Planted(
        name="every_rank_stops_for_itself",
        script="spawn_ddp.py",
        edits=(
            ("    dist.all_reduce(totals)\n", ""),
            ("validate(model, val_loader)", "validate(model.module, val_loader)"),
            (
                "    fit(model, train_loader, val_loader, args)\n",
                "    with model.join():\n        fit(model, train_loader, val_loader, args)\n",
            ),
        ),
        check="early-stop-differs",
        words=("rank",),
        arguments="--epochs 20 --lr-patience 99 --patience 0",
    ),
    Planted(
        name="validation_within_training",
        script="single_process.py",
        edits=(("order[:400], order[400:]", "order[:400], order[300:]"),),
        check="train-validation-overlap",
        words=("100",),
    ),
    Planted(
        name="head_without_optimizer",
        script="single_process.py",
        edits=(("AdamW(model.parameters()", "AdamW(model.backbone.parameters()"),),
        check="frozen-parameters",
        words=("head.",),
        at="optimizer = ",
    ),
    Planted(
        name="unfrozen_after_wrapping",
        script="amp_scaler.py",
        edits=(
            (
                "    model = DDP(net)\n",
                "    net.body.requires_grad_(False)\n"
                "    model = DDP(net)\n"
                "    net.body.requires_grad_(True)\n",
            ),
        ),
        check="unsynced-gradients",
        words=("rank 0", "2 of 4 tensors", "body.0.weight"),
        at="optimizer = ",
    ),
    Planted(
        name="the_whole_stream_on_every_rank",
        script="iterable_stream.py",
        edits=(("Readings(args.epoch_size, rank, world_size)", "Readings(args.epoch_size, 0, 1)"),),
        check="overlapping-samples",
        words=("rank",),
        at="loader = DataLoader(",
    ),
    Planted(
        name="repeated_before_the_split",
        script="data_parallel.py",
        edits=(
            (
                "ids = torch.arange(len(labels))\n",
                "nines = (labels == 1).nonzero().flatten()\n"
                "ids = torch.cat((torch.arange(len(labels)), nines, nines, nines))\n",
            ),
            (
                "rare_ids = train_ids[labels[train_ids] == 1]\n"
                "train_ids = torch.cat((train_ids, rare_ids, rare_ids, rare_ids))\n",
                "",
            ),
        ),
        check="train-validation-overlap",
    ),
    Planted(
        name="shuffled_once",
        script="data_parallel.py",
        edits=(
            (
                "batch_size=args.batch_size, shuffle=True",
                "batch_size=args.batch_size, sampler=torch.randperm(len(train_ids)).tolist()",
            ),
        ),
        check="same-order-every-epoch",
        words=("rank 0", "1,752 samples"),
        at="train_loader = DataLoader(",
    ),
)

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
"""Changes that look like faults, or are unusual, and are sound."""
