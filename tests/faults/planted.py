"""Faults planted in the example scripts, in text, one at a time.

Each is silent: the script ends well and its loss looks normal. Its sound twin is the example.
"""

from faults.scripts import Planted

FAULTS = (
    Planted(
        name="no_set_epoch",
        script="mnist_ddp.py",
        edits=(("        sampler.set_epoch(epoch)\n", ""),),
        check="same-order-every-epoch",
        words=("rank 0", "750 samples"),
        at="train_loader = DataLoader(",
        group="data",
        links=("pytorch/pytorch#31771", "cszn/KAIR PR#106"),
    ),
    Planted(
        name="no_distributed_sampler",
        script="mnist_ddp.py",
        edits=(("batch_size=args.batch_size, sampler=sampler)", "args.batch_size, shuffle=True)"),),
        check="overlapping-samples",
        words=("rank",),
        at="train_loader = DataLoader(",
        group="data",
        links=("PatrickHua/SimSiam#16", "narumiruna/pytorch-distributed-example#5"),
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
        group="metrics",
        links=("pytorch/pytorch#25162", "mosaicml/composer PR#2218"),
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
        group="metrics",
        links=("pyannote/pyannote-audio#591", "Lyken17/Efficient-PyTorch#24"),
    ),
    Planted(
        name="accuracy_of_rank_0_after_a_barrier",  # which carries no figure
        script="mnist_ddp.py",
        edits=(
            ("    dist.all_reduce(counts)\n", "    dist.barrier()\n"),
            ("import torch\n", "import scaleproof\nimport torch\n"),
            (
                "        if rank == 0:\n",
                "        if rank == 0:\n"
                "            scaleproof.report_metrics(epoch=epoch, accuracy=accuracy)\n",
            ),
        ),
        check="metric-from-one-shard",
        words=("rank 0",),
        group="metrics",
        links=("pyannote/pyannote-audio#591",),
    ),
    Planted(
        name="resume_without_sampler_epoch",
        script="mnist_ddp.py",
        edits=(("set_epoch(epoch)", "set_epoch(epoch - first_epoch)"),),
        check="resume-repeats-samples",
        words=("epoch 0",),
        at="train_loader = DataLoader(",
        resumes=True,
        group="resume",
        links=("pytorch/pytorch#36650", "huggingface/accelerate#2016"),
    ),
    Planted(
        name="one_seed_for_all_workers",
        script="resnet_cifar10.py",
        edits=(("torch.manual_seed(args.seed + rank)", "torch.manual_seed(args.seed)"),),
        check="identical-augmentation",
        words=("ranks 0 and 1",),
        at="train_loader = DataLoader(",
        group="data",
        links=("huggingface/transformers#37932", "threestudio-project/threestudio#195"),
    ),
    Planted(
        name="own_batch_norm_statistics",
        script="resnet_cifar10.py",
        edits=(("        average_batch_norm(model.module)\n", ""),),
        check="buffer-drift",
        words=("rank 1", "running_"),
        group="state",
    ),
    Planted(
        name="generator_past_its_wrapper",
        script="gan.py",
        edits=(("generator(torch.randn", "generator.module(torch.randn"),),
        check="unsynced-gradients",
        words=("rank 0", "6 of 6 tensors"),
        at="optimizer_g = ",
        group="sync",
        links=("jingyaogong/minimind PR#854", "kohya-ss/sd-scripts#924"),
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
        group="data",
        links=("karpathy/nanoGPT#204", "facebookresearch/XLM#121"),
    ),
    Planted(
        name="one_seed_for_dropout",
        script="language_model.py",
        edits=(("torch.manual_seed(1337 + rank)\n", "torch.manual_seed(1337)\n"),),
        check="identical-dropout",
        words=("ranks 0 and 1",),
        group="data",
        links=("huggingface/transformers#31412", "huggingface/accelerate#114"),
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
        group="sync",
        links=("modelscope/FunASR PR#3472",),
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
        group="state",
        links=("huggingface/accelerate#3256", "huggingface/accelerate#2665"),
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
        group="data",
        links=("huggingface/accelerate#3520", "huggingface/accelerate#4199"),
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
        group="state",
        links=("sparticlesteve/pytorch-benchmarks PR#1",),
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
        group="scaling",
        links=("pytorch/torchtitan PR#2323", "pytorch/torchtune PR#2172"),
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
        group="clipping",
        links=("horovod/horovod#1346",),
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
        group="scaling",
        links=("facebookresearch/fairchem PR#269", "pytorch/pytorch#67253"),
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
        group="data",
        links=("TensorAuto/OpenTau PR#498", "Lightning-AI/pytorch-lightning#7728"),
    ),
    Planted(
        name="plateau_of_the_last_batch",
        script="spawn_ddp.py",
        edits=(("scheduler.step(val_loss)", "scheduler.step(loss.item())"),),
        check="schedule-drift",
        words=("rank 1",),
        arguments="--epochs 8 --lr-patience 0",
        group="schedule",
        links=("rmchurch/disruptcnn#3",),
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
        group="schedule",
        links=("Lightning-AI/pytorch-lightning#379", "talmolab/sleap-nn PR#471"),
    ),
    Planted(
        name="validation_within_training",
        script="single_process.py",
        edits=(("order[:400], order[400:]", "order[:400], order[300:]"),),
        check="train-validation-overlap",
        words=("100",),
        group="data",
    ),
    Planted(
        name="head_without_optimizer",
        script="single_process.py",
        edits=(("AdamW(model.parameters()", "AdamW(model.backbone.parameters()"),),
        check="frozen-parameters",
        words=("head.",),
        at="optimizer = ",
        group="state",
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
        words=("rank 0", "body.0.weight"),
        at="optimizer = ",
        group="sync",
        links=("Lightning-AI/pytorch-lightning#20340", "NVIDIA/apex PR#46"),
    ),
    Planted(
        name="the_whole_stream_on_every_rank",
        script="iterable_stream.py",
        edits=(("Readings(args.epoch_size, rank, world_size)", "Readings(args.epoch_size, 0, 1)"),),
        check="overlapping-samples",
        words=("rank",),
        at="loader = DataLoader(",
        group="data",
        links=("huggingface/datasets#5360", "huggingface/transformers PR#11254"),
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
        group="data",
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
        group="data",
    ),
)
