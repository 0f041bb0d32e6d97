"""Faults of data, metrics, resuming and schedules, planted in scripts of many styles.

Each is silent: the script ends well and its loss looks normal. Its sound twin is the script.
"""

from faults.scripts import Planted

SOUND = (
    "click_stream.py",
    "fraud_tabular.py",
    "graph_classifier.py",
    "lstm_word_model.py",
    "mixer_torchmetrics.py",
    "resumable_autoencoder.py",
    "siamese_digits.py",
    "text_buckets.py",
    "window_forecaster.py",
)

FAULTS = (
    Planted(
        name="annealed_by_its_own_validation",
        script="lstm_word_model.py",
        edits=(("    dist.all_reduce(total)\n", ""),),
        check="schedule-drift",
        words=("rank 1",),
        arguments="--epochs 8 --lr 20",
        group="schedule",
        links=("rmchurch/disruptcnn#3",),
    ),
    Planted(
        name="one_seed_for_partners",
        script="siamese_digits.py",
        edits=(
            (
                'random.seed(opt.manualSeed + int(os.environ["RANK"]))  '
                "# pairs of its own for every rank\n",
                "random.seed(opt.manualSeed)\n",
            ),
            ("import os\n", ""),
        ),
        check="identical-augmentation",
        words=("ranks 0 and 1", "python"),
        at="self.train_loader = DataLoader(",
        group="data",
        links=("huggingface/transformers#37932",),
    ),
    Planted(
        name="accuracy_not_put_together",
        script="siamese_digits.py",
        edits=(("BinaryAccuracy()", "BinaryAccuracy(sync_on_compute=False)"),),
        check="metric-from-one-shard",
        words=("rank 0", "BinaryAccuracy"),
        at="self.test_loader = DataLoader(",
        group="metrics",
        links=("pyannote/pyannote-audio#591", "Lyken17/Efficient-PyTorch#24"),
    ),
    Planted(
        name="workers_seeded_by_their_number",
        script="graph_classifier.py",
        edits=(("np.random.seed(torch.initial_seed() % 2**32)", "np.random.seed(42 + worker_id)"),),
        check="identical-augmentation",
        words=("ranks 0 and 1", "numpy"),
        at="train_loader = DataLoader(",
        group="data",
        links=("threestudio-project/threestudio#195", "pytorch/pytorch#5059"),
    ),
    Planted(
        name="validation_cut_to_equal_parts",
        script="graph_classifier.py",
        edits=(
            (
                "    val_part = Subset(val_set, range(rank, len(val_set), world_size))\n",
                "    val_sampler = DistributedSampler(val_set, shuffle=False, drop_last=True)\n",
            ),
            (
                "DataLoader(val_part, 64, collate_fn=collate)",
                "DataLoader(val_set, 64, sampler=val_sampler, collate_fn=collate)",
            ),
            ("DataLoader, Dataset, Subset\n", "DataLoader, Dataset\n"),
        ),
        check="padded-evaluation",
        words=("150", "1 left out"),
        at="val_loader = DataLoader(",
        group="metrics",
        links=("huggingface/accelerate#1674", "huggingface/accelerate#3013"),
    ),
    Planted(
        name="best_epoch_by_its_own_validation",
        script="graph_classifier.py",
        edits=(("    dist.all_reduce(counts)\n", ""),),
        check="replica-drift",
        words=("rank 1",),
        group="schedule",
        links=("Lightning-AI/pytorch-lightning#3597", "fastai/fastai#2371"),
    ),
    Planted(
        name="weighted_draws_alike_on_all_ranks",
        script="fraud_tabular.py",
        edits=(
            (
                "    sampler = DistributedSamplerWrapper(\n"
                "        WeightedRandomSampler(weights, len(train_ds), "
                "generator=torch.Generator())\n"
                "    )\n",
                "    sampler = WeightedRandomSampler(weights, len(train_ds) // world_size)\n",
            ),
            ("        sampler.set_epoch(epoch)\n", ""),
        ),
        check="overlapping-samples",
        words=("ranks 0 and 1", "same order"),
        at="train_dl = DataLoader(",
        group="data",
        links=("PatrickHua/SimSiam#16", "narumiruna/pytorch-distributed-example#5"),
    ),
    Planted(
        name="hold_out_by_the_seed_of_the_rank",
        script="fraud_tabular.py",
        edits=(
            ("stratify=y, random_state=CFG.seed\n", "stratify=y, random_state=CFG.seed + rank\n"),
        ),
        check="train-validation-overlap",
        words=("ranks 0 and 1",),
        group="data",
        links=("Lightning-AI/pytorch-lightning#7728", "Lightning-AI/pytorch-lightning#18638"),
    ),
    Planted(
        name="batch_sampler_without_epoch",
        script="text_buckets.py",
        edits=(("        sampler.set_epoch(epoch)\n", ""),),
        check="same-order-every-epoch",
        words=("rank 0", "256 samples"),
        at="train_loader = DataLoader(",
        group="data",
        links=("huggingface/transformers#4398", "cszn/KAIR PR#106"),
    ),
    Planted(
        name="buckets_shuffled_by_the_seed_of_the_rank",
        script="text_buckets.py",
        edits=(
            (
                "rng = random.Random(self.epoch)  # the same on every rank\n",
                "rng = random.Random(1000 * self.epoch + self.rank)\n",
            ),
        ),
        check="overlapping-samples",
        words=("ranks 0 and 1",),
        at="train_loader = DataLoader(",
        group="data",
        links=("mlcommons/training PR#625", "open-mmlab/mmpose PR#1257"),
    ),
    Planted(
        name="decay_planned_before_the_split",
        script="text_buckets.py",
        edits=(("len(train_loader)", "(len(train_set) // batch_size)"),),
        check="unfinished-schedule",
        group="schedule",
        links=("huggingface/diffusers PR#8312",),
    ),
    Planted(
        name="decay_planned_for_split_twice",
        script="text_buckets.py",
        edits=(("len(train_loader)", "len(train_loader) // world_size"),),
        check="unfinished-schedule",
        group="schedule",
        links=("huggingface/accelerate#2142", "huggingface/transformers PR#24088"),
    ),
    Planted(
        name="one_cycle_planned_before_the_split",
        script="window_forecaster.py",
        edits=(("len(train_loader)", "(len(train_set) // cfg.batch_size)"),),
        check="unfinished-schedule",
        group="schedule",
        links=("huggingface/diffusers PR#8312", "huggingface/accelerate#1398"),
    ),
    Planted(
        name="latest_windows_always_dropped",
        script="window_forecaster.py",
        edits=(("shuffle=True, seed=cfg.seed)", "shuffle=False)"),),
        check="missing-samples",
        words=("the same ones each time",),
        at="train_loader = DataLoader(",
        group="data",
        links=("modelscope/ms-swift PR#9907", "areal-project/AReaL PR#1100"),
    ),
    Planted(
        name="stream_made_before_the_process_group",
        script="click_stream.py",
        edits=(
            (
                '    dist.init_process_group("gloo")\n    log = ClickLog(args.lines)\n',
                '    log = ClickLog(args.lines)\n    dist.init_process_group("gloo")\n',
            ),
        ),
        check="overlapping-samples",
        words=("ranks 0 and 1",),
        at="loader = DataLoader(",
        group="data",
        links=("huggingface/datasets#5360", "huggingface/transformers PR#11254"),
    ),
    Planted(
        name="optimizer_state_left_in_the_checkpoint",
        script="resumable_autoencoder.py",
        edits=(('    optimizer.load_state_dict(checkpoint["optimizer"])\n', ""),),
        check="unrestored-state",
        words=("optimizer",),
        resumes=True,
        group="resume",
        links=("KempnerInstitute/KempnerForge PR#115",),
    ),
    Planted(
        name="scheduler_state_left_in_the_checkpoint",
        script="resumable_autoencoder.py",
        edits=(('    scheduler.load_state_dict(checkpoint["scheduler"])\n', ""),),
        check="unrestored-state",
        words=("scheduler",),
        resumes=True,
        group="resume",
        links=("TensorAuto/OpenTau PR#180",),
    ),
    Planted(
        name="begun_epoch_from_its_first_batch",
        script="resumable_autoencoder.py",
        edits=(
            ("import itertools\n", ""),
            ("itertools.islice(loader, steps_done_in_epoch, None)", "loader"),
        ),
        check="resume-repeats-samples",
        words=("25 steps", "9 into an epoch of 16"),
        at="loader = DataLoader(",
        resumes=True,
        group="resume",
        links=("pytorch/pytorch#36650", "huggingface/accelerate#2016"),
    ),
    Planted(
        name="random_state_of_rank_0_for_all",
        script="resumable_autoencoder.py",
        edits=(
            ('checkpoint["rng"][rank]', 'checkpoint["rng"]'),
            (
                "    rng = [None] * world_size\n"
                "    dist.all_gather_object(rng, torch.get_rng_state())"
                "  # every rank has its own\n",
                "",
            ),
            ('        "rng": rng,\n', '        "rng": torch.get_rng_state(),\n'),
        ),
        check="identical-dropout",
        words=("ranks 0 and 1",),
        resumes=True,
        group="resume",
        links=("NVIDIA/Megatron-LM PR#6858", "radixark/miles PR#3187"),
    ),
    Planted(
        name="sampler_seeded_by_its_rank",
        script="mixer_torchmetrics.py",
        edits=(
            (
                'self.train_set, self.world_size, self.rank, seed=hparams["seed"]\n',
                'self.train_set, self.world_size, self.rank, seed=hparams["seed"] + self.rank\n',
            ),
        ),
        check="overlapping-samples",
        words=("ranks 0 and 1",),
        at='return DataLoader(self.train_set, hparams["batch_size"]',
        group="data",
        links=("mlcommons/training PR#625", "NVlabs/LongLive#71"),
    ),
    Planted(
        name="mean_of_the_ranks_f1",
        script="mixer_torchmetrics.py",
        edits=(
            ('average="micro")', 'average="micro", sync_on_compute=False)'),
            ('average="macro")', 'average="macro", sync_on_compute=False)'),
            (
                "    return {name: value.item() for name, value in metrics.compute().items()}\n",
                "    scores = metrics.compute()\n"
                "    for value in scores.values():\n"
                "        dist.all_reduce(value)\n"
                "    return {name: (v / dist.get_world_size()).item() "
                "for name, v in scores.items()}\n",
            ),
        ),
        check="metric-from-one-shard",
        words=("rank 0", "rank 1"),
        at="return DataLoader(mine,",
        group="metrics",
        links=("Lightning-AI/pytorch-lightning#12354",),
    ),
    Planted(
        name="columns_of_the_stream_not_split",
        script="lstm_word_model.py",
        edits=(
            (
                "train_data = my_columns(batchify(corpus(12000, 0), args.batch_size), "
                "rank, world_size)",
                "train_data = batchify(corpus(12000, 0), args.batch_size)",
            ),
        ),
        check="overlapping-samples",
        words=("ranks 0 and 1", "same inputs"),
        group="data",
        links=("karpathy/nanoGPT#204", "facebookresearch/XLM#121"),
    ),
    Planted(
        name="tail_of_the_validation_dropped",
        script="mixer_torchmetrics.py",
        edits=(("drop_last=False", "drop_last=True"),),
        check="padded-evaluation",
        words=("320 items scored", "37 left out"),
        at="return DataLoader(mine,",
        group="metrics",
        links=("huggingface/accelerate#575",),
    ),
    Planted(
        name="validation_set_divided_and_rounded_down",
        script="graph_classifier.py",
        edits=(
            (
                "    val_part = Subset(val_set, range(rank, len(val_set), world_size))\n",
                "    per_rank = len(val_set) // world_size\n"
                "    val_part = Subset(val_set, range(rank * per_rank, (rank + 1) * per_rank))\n",
            ),
        ),
        check="padded-evaluation",
        words=("150 items scored", "1 left out"),
        at="val_loader = DataLoader(",
        group="metrics",
        links=("huggingface/accelerate#1674", "huggingface/accelerate#3013"),
    ),
    Planted(
        name="every_worker_reads_all_lines_of_the_rank",
        script="click_stream.py",
        edits=(
            (
                "        worker = get_worker_info()\n"
                "        num_workers = worker.num_workers if worker else 1\n"
                "        worker_id = worker.id if worker else 0\n"
                "        reader = self.rank * num_workers + worker_id\n"
                "        num_readers = self.world_size * num_workers\n"
                "        lines = itertools.islice(log_lines(self.num_lines, self.day), reader, "
                "None, num_readers)\n",
                "        lines = log_lines(self.num_lines, self.day)\n"
                "        lines = itertools.islice(lines, self.rank, None, self.world_size)\n",
            ),
            ("IterableDataset, get_worker_info\n", "IterableDataset\n"),
        ),
        check="repeated-samples",
        words=("rank 0", "2 workers"),
        at="loader = DataLoader(",
        group="data",
    ),
    Planted(
        name="rest_of_the_epoch_skipped",
        script="resumable_autoencoder.py",
        edits=(
            (
                "epoch, steps_done_in_epoch = divmod(step, len(loader))\n",
                "epoch, steps_done_in_epoch = math.ceil(step / len(loader)), 0\n",
            ),
        ),
        check="resume-repeats-samples",
        words=("25 steps", "9 into an epoch of 16", "was left out"),
        at="loader = DataLoader(",
        resumes=True,
        group="resume",
        links=("verl-project/verl#7401",),
    ),
)

_WEIGHTED = (
    "    share = len(loader.dataset) / 357\n"
    "    scores = {name: value * share for name, value in metrics.compute().items()}\n"
    "    for value in scores.values():\n"
    "        dist.all_reduce(value)\n"
    "    return {name: v.item() for name, v in scores.items()}\n"
)
_EACH_FOR_ITSELF = (
    ('average="micro")', 'average="micro", sync_on_compute=False)'),
    ('            "f1": MulticlassF1Score(num_classes=10, average="macro"),\n', ""),
    (", MulticlassF1Score", ""),
    (
        "    return {name: value.item() for name, value in metrics.compute().items()}\n",
        _WEIGHTED,
    ),
)

TWINS = (
    Planted(
        name="accuracies_weighted_added_up_and_reported",
        script="mixer_torchmetrics.py",
        edits=(
            *_EACH_FOR_ITSELF,
            (
                "import torch\nimport torch.dist",
                "import scaleproof\nimport torch\nimport torch.dist",
            ),
            (
                '        if rank == 0:\n            print(f"epoch {epoch}:',
                "        scaleproof.report_metrics(epoch=epoch, **scores)\n"
                '        if rank == 0:\n            print(f"epoch {epoch}:',
            ),
        ),
    ),
)
"""Edits that look like faults and are sound."""

OPEN = (
    # That each rank's accuracy is but a term of a sum shows nowhere until the sum is reported.
    Planted(
        name="accuracies_weighted_and_added_up",
        script="mixer_torchmetrics.py",
        edits=_EACH_FOR_ITSELF,
        check="metric-from-one-shard",
    ),
)
"""Sound edits that ``check`` leaves undecided, and must not call a fault."""
