"""Faults planted in loops inside Accelerate, Lightning, the Transformers Trainer, torchmetrics and
torch's tensor parallelism, in text, one at a time.

Each is silent: the script ends well and its loss looks normal. Its sound twin is the script.
"""

from faults.scripts import Planted

SOUND = (
    "accelerate_topics.py",
    "accelerate_denoise.py",
    "lightning_autoencoder.py",
    "lightning_manual.py",
    "hf_trainer_gpt2.py",
    "torchmetrics_ddp.py",
    "spawn_recommender.py",
    "fsdp2_tensor_parallel.py",
)

STARTS_ITSELF = ("lightning_manual.py", "spawn_recommender.py")
"""Started with plain ``python``; the others by torchrun."""

_ACCELERATE = (
    Planted(
        name="accelerate_loss_times_processes",
        script="accelerate_topics.py",
        edits=(
            (
                "accelerator.backward(loss)",
                "accelerator.backward(loss * accelerator.num_processes)",
            ),
        ),
        check="misscaled-gradients",
        group="scaling",
        links=("neuralmagic/sparseml PR#135", "ultralytics/ultralytics#18616"),
    ),
    Planted(
        name="accelerate_clips_every_microbatch",  # and so each rank's own, before the reduction
        script="accelerate_topics.py",
        edits=(
            (
                "                if accelerator.sync_gradients:\n"
                "                    accelerator.clip_grad_norm_(model.parameters(), 0.1)\n",
                "                accelerator.clip_grad_norm_(model.parameters(), 0.1)\n",
            ),
        ),
        check="clipped-before-reduction",
        words=("rank",),
        group="clipping",
        links=("horovod/horovod#1346",),
    ),
    Planted(
        name="accelerate_unwrapped_forward",
        script="accelerate_topics.py",
        edits=(
            (
                'logits = model(batch["words"])',
                'logits = accelerator.unwrap_model(model)(batch["words"])',
            ),
        ),
        check="unsynced-gradients",
        words=("6 of 6 tensors",),
        at="optimizer = ",
        group="sync",
        links=("kohya-ss/sd-scripts#924", "jingyaogong/minimind PR#854"),
    ),
    Planted(
        name="accelerate_schedule_of_the_prepared_loader",  # stepped once per process
        script="accelerate_topics.py",
        edits=(
            (
                "    # a prepared scheduler steps once per process, so count the batches before "
                "prepare()\n"
                "    max_steps = EPOCHS * len(train_loader) // ACCUMULATE\n"
                "    scheduler = CosineAnnealingLR(optimizer, T_max=max_steps)\n"
                "    model, optimizer, scheduler, train_loader, test_loader = "
                "accelerator.prepare(\n"
                "        model, optimizer, scheduler, train_loader, test_loader\n"
                "    )\n",
                "    model, optimizer, train_loader, test_loader = accelerator.prepare(\n"
                "        model, optimizer, train_loader, test_loader\n"
                "    )\n"
                "    max_steps = EPOCHS * len(train_loader) // ACCUMULATE\n"
                "    scheduler = CosineAnnealingLR(optimizer, T_max=max_steps)\n"
                "    scheduler = accelerator.prepare(scheduler)\n",
            ),
        ),
        check="unfinished-schedule",
        group="schedule",
        links=("huggingface/accelerate#2142", "huggingface/accelerate#1398"),
    ),
    Planted(
        name="accelerate_shards_a_shard",
        script="accelerate_denoise.py",
        edits=(
            (
                "dataloader = DataLoader(dataset, batch_size=args.train_batch_size, shuffle=True)",
                "sampler = torch.utils.data.DistributedSampler(\n"
                "        dataset,\n"
                "        num_replicas=accelerator.num_processes,\n"
                "        rank=accelerator.process_index,\n"
                "    )\n"
                "    dataloader = DataLoader(\n"
                "        dataset, batch_size=args.train_batch_size, sampler=sampler\n"
                "    )",
            ),
            (
                "        model.train()\n",
                "        model.train()\n        sampler.set_epoch(epoch)\n",
            ),
        ),
        check="missing-samples",
        words=("handed to no rank",),
        group="data",
        links=("huggingface/accelerate#3520", "huggingface/accelerate#4199"),
    ),
    Planted(
        name="accelerate_scheduler_not_prepared",  # its length is that of the loader before
        script="accelerate_denoise.py",
        edits=(
            (
                "    model, optimizer, dataloader, lr_scheduler = accelerator.prepare(\n"
                "        model, optimizer, dataloader, lr_scheduler\n"
                "    )\n",
                "    model, optimizer, dataloader = accelerator.prepare(\n"
                "        model, optimizer, dataloader\n"
                "    )\n",
            ),
        ),
        check="unfinished-schedule",
        group="schedule",
        links=("huggingface/diffusers PR#8312",),
    ),
    Planted(
        name="accelerate_one_seed_for_noise",
        script="accelerate_denoise.py",
        edits=(
            (
                "    set_seed(args.seed, device_specific=True)  # other noise on every process\n",
                "",
            ),
        ),
        check="identical-dropout",
        words=("ranks 0 and 1",),
        group="data",
        links=("huggingface/accelerate#114",),
    ),
)

_LIGHTNING = (
    Planted(
        name="lightning_without_a_sampler",
        script="lightning_autoencoder.py",
        edits=(
            (
                '        strategy="ddp",\n',
                '        strategy="ddp",\n        use_distributed_sampler=False,\n',
            ),
        ),
        check="overlapping-samples",
        words=("ranks 0 and 1",),
        group="data",
        links=("Lightning-AI/pytorch-lightning#15734",),
    ),
    Planted(
        name="lightning_logs_one_shard",
        script="lightning_autoencoder.py",
        edits=((", loss, sync_dist=True)", ", loss)"),),
        check="metric-from-one-shard",
        words=("rank 0", "val_loss"),
        group="metrics",
        links=("pyannote/pyannote-audio#591",),
    ),
    Planted(
        name="lightning_schedule_of_the_whole_loader",
        script="lightning_autoencoder.py",
        edits=(
            (
                "        optimizer = torch.optim.Adam(",
                "        batches = len(self.trainer.datamodule.train_dataloader())\n"
                "        steps_per_epoch = batches // self.trainer.accumulate_grad_batches\n"
                "        optimizer = torch.optim.Adam(",
            ),
            (
                "total_steps=self.trainer.estimated_stepping_batches",
                "total_steps=steps_per_epoch * self.trainer.max_epochs",
            ),
        ),
        check="unfinished-schedule",
        group="schedule",
        links=("huggingface/diffusers PR#8312",),
    ),
    Planted(
        name="lightning_manual_without_division",
        script="lightning_manual.py",
        edits=(
            ("        # scale losses by 1/N (for N batches of gradient accumulation)\n", ""),
            ("self.manual_backward(loss / self.accumulate)", "self.manual_backward(loss)"),
        ),
        check="undivided-accumulation",
        group="scaling",
        links=("lukas-blecher/LaTeX-OCR PR#148", "pytorch/torchtitan#1733"),
    ),
    Planted(
        name="lightning_manual_clears_every_microbatch",
        script="lightning_manual.py",
        edits=(
            (
                "        optimizer = self.optimizers()\n",
                "        optimizer = self.optimizers()\n        optimizer.zero_grad()\n",
            ),
            (
                "            optimizer.step()\n            optimizer.zero_grad()\n",
                "            optimizer.step()\n",
            ),
        ),
        check="discarded-microbatches",
        group="sync",
        links=("NVIDIA-NeMo/Automodel PR#3530",),
    ),
)

_TOKEN_MEAN = (
    "def main():",
    "class TokenMeanTrainer(Trainer):\n"
    "    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):\n"
    '        labels = inputs.pop("labels")\n'
    "        outputs = model(**inputs)\n"
    "        logits = outputs.logits[:, :-1].flatten(0, 1)\n"
    "        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())\n"
    "        return (loss, outputs) if return_outputs else loss\n"
    "\n\n"
    "def main():",
)
"""Its loss is the mean over the tokens of one microbatch of one rank; -100 is left out."""

_TRAINER = (
    Planted(
        name="hf_tokens_not_averaged_across_devices",
        script="hf_trainer_gpt2.py",
        edits=(
            (
                "            max_grad_norm=1.0,\n",
                "            max_grad_norm=1.0,\n"
                "            average_tokens_across_devices=False,\n",
            ),
        ),
        check="misweighted-gradients",
        group="scaling",
        links=("huggingface/transformers PR#34373", "huggingface/transformers PR#34191"),
    ),
    Planted(
        name="hf_own_loss_undivided",  # the Trainer divides only what it knows to be a mean
        script="hf_trainer_gpt2.py",
        edits=(_TOKEN_MEAN, ("trainer = Trainer(", "trainer = TokenMeanTrainer(")),
        check="undivided-accumulation",
        group="scaling",
        links=("huggingface/transformers PR#34191",),
    ),
    Planted(
        name="hf_own_loss_of_microbatch_means",
        script="hf_trainer_gpt2.py",
        edits=(
            _TOKEN_MEAN,
            (
                "        trainer = Trainer(",
                "        trainer = TokenMeanTrainer(",
            ),
            (
                "        trainer.train()\n",
                "        # the loss is a mean already: divide by gradient_accumulation_steps\n"
                "        trainer.model_accepts_loss_kwargs = False\n"
                "        trainer.train()\n",
            ),
        ),
        check="misweighted-gradients",
        group="scaling",
        links=("huggingface/transformers PR#34191", "huggingface/blog PR#2414"),
    ),
    Planted(
        name="hf_one_seed_for_dropout",  # the Trainer seeds all ranks alike
        script="hf_trainer_gpt2.py",
        edits=(
            ("        resid_pdrop=0.0,\n        embd_pdrop=0.0,\n        attn_pdrop=0.0,\n", ""),
            # batches of one shape: ranks that draw as much go on with the same masks for ever
            ('max(len(f["input_ids"]) for f in features)', "24"),
        ),
        check="identical-dropout",
        words=("ranks 0 and 1",),
        group="data",
        links=("huggingface/transformers#31412",),
    ),
)

_PLAIN = (
    Planted(
        name="torchmetrics_not_synchronised",
        script="torchmetrics_ddp.py",
        edits=(
            (
                "[BinaryAccuracy(), BinaryF1Score(), BinaryRecall()]",
                "[m(sync_on_compute=False) for m in (BinaryAccuracy, BinaryF1Score, BinaryRecall)]",
            ),
        ),
        check="metric-from-one-shard",
        words=("rank 0",),
        group="metrics",
        links=("Lyken17/Efficient-PyTorch#24",),
    ),
    Planted(
        name="spawn_loss_over_world_size",
        script="spawn_recommender.py",
        edits=(("            loss.backward()\n", "            (loss / world_size).backward()\n"),),
        check="misscaled-gradients",
        group="scaling",
        links=("pytorch/torchtitan PR#2323", "pytorch/torchtune PR#2172"),
    ),
    Planted(
        name="spawn_sampler_seed_per_rank",
        script="spawn_recommender.py",
        edits=(("rank=rank, shuffle=True)", "rank=rank, seed=args.seed + rank)"),),
        check="overlapping-samples",
        words=("ranks 0 and 1",),
        group="data",
        links=("mlcommons/training PR#625",),
    ),
)

_TENSOR_PARALLEL = (
    Planted(
        name="tp_clips_by_its_shard",
        script="fsdp2_tensor_parallel.py",
        edits=(
            (
                "            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)\n",
                "            norm = nn.utils.get_total_norm(\n"
                "                [p.grad.to_local() for p in model.parameters()]\n"
                "            )\n"
                "            nn.utils.clip_grads_with_norm_(model.parameters(), MAX_NORM, norm)\n",
            ),
            ("3e-3, 1.0", "3e-3, 0.3"),
        ),
        check="clipped-at-the-wrong-norm",
        group="clipping",
        links=("pytorch/pytorch#72548", "PrimeIntellect-ai/OpenDiloco PR#6"),
    ),
    Planted(
        name="tp_ranks_fed_apart",
        script="fsdp2_tensor_parallel.py",
        edits=(
            (
                "DistributedSampler(dataset, num_replicas=dp_size, rank=dp_rank)",
                "DistributedSampler(dataset)",
            ),
        ),
        check="unlike-model-parallel-inputs",
        words=("ranks 0 and 1",),
        at="loader = ",
        group="data",
        links=("facebookresearch/metaseq PR#753",),
    ),
)

FAULTS = (*_ACCELERATE, *_LIGHTNING, *_TRAINER, *_PLAIN, *_TENSOR_PARALLEL)

OPEN = (
    Planted(  # 201 test items are counted as 202
        name="accelerate_gathers_the_padding",
        script="accelerate_topics.py",
        edits=(("accelerator.gather_for_metrics((", "accelerator.gather(("),),
        group="metrics",
        links=("huggingface/accelerate#226",),
    ),
    # Tensor parallelism by hand: nothing says which of the tensors that differ are parts of one.
    Planted(
        name="tp_norms_not_reduced",
        script="handwritten_tp.py",
        edits=(
            (
                "        for param in self.norm.parameters():\n"
                "            param.sequence_parallel = True\n",
                "",
            ),
        ),
        words=("norm.weight",),
        group="sync",
        links=("NVIDIA/Megatron-LM#1446", "NVIDIA/TransformerEngine#435"),
    ),
    Planted(
        name="tp_dropout_masks_differ",
        script="handwritten_tp.py",
        edits=(("torch.manual_seed(4321)", "torch.manual_seed(4321 + RANK)"),),
        words=("positions",),
        group="sync",
        links=("bigscience-workshop/Megatron-DeepSpeed PR#276", "NVIDIA/Megatron-LM PR#206"),
    ),
)
"""Faults that no check is sure to name yet."""
