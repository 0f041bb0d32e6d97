"""Faults in how gradients are shared and scaled, planted in scripts of many styles.

Their classes: synchronisation and scaling; ``planted_state.py`` has clipping, precision and state.
Each is silent: the script ends well and its loss looks normal. Its sound twin is the script itself.
"""

from faults.scripts import Planted

SOUND = (
    "accumulate_cnn.py",
    "actor_critic.py",
    "amp_tabular.py",
    "ecg_resnet.py",
    "fsdp2_lm.py",
    "lora.py",
    "mean_teacher.py",
    "mixture_of_experts.py",
    "reverse_seq2seq.py",
    "simclr.py",
    "tagger.py",
    "unet.py",
    "vae.py",
)
"""All are started by torchrun without arguments."""

_SYNC = (
    Planted(
        name="converted_after_wrapping",
        script="vae.py",
        edits=(
            ("pixels / 16, dtype=torch.float32", "pixels / 16"),
            ("DistributedDataParallel(VAE())", "DistributedDataParallel(VAE()).double()"),
        ),
        check="unsynced-gradients",
        words=("rank 0", "10 of 10 tensors"),
        at="optimizer = ",
        group="sync",
        links=("pytorch/pytorch#104336", "Lightning-AI/pytorch-lightning#17937"),
    ),
    Planted(
        name="critic_left_out_of_the_average",
        script="actor_critic.py",
        edits=(("list(agent.parameters())", "list(agent.actor.parameters())"),),
        check="unsynced-gradients",
        words=("rank 0",),
        at="optimizer = ",
        group="sync",
        links=("hao-ai-lab/FastVideo PR#1666", "huggingface/diffusers#4046"),
    ),
    Planted(
        name="synchronised_with_the_first_microbatch",
        script="accumulate_cnn.py",
        edits=(
            (
                "contextlib.nullcontext() if update else model.no_sync()",
                "contextlib.nullcontext() if i % CFG.accum_steps == 0 else model.no_sync()",
            ),
        ),
        check="unsynced-gradients",
        words=("rank 0", "6 of 6 tensors"),
        at="optimizer = ",
        group="sync",
        links=("modelscope/FunASR PR#3472",),
    ),
    Planted(
        name="sharded_over_one_rank",
        script="fsdp2_lm.py",
        edits=(
            (
                'init_device_mesh("cpu", (world_size,), mesh_dim_names=("shard",))\n',
                'init_device_mesh("cpu", (world_size, 1), mesh_dim_names=("replicate", "shard"))\n'
                'mesh = mesh["shard"]\n',
            ),
        ),
        check="unsynced-gradients",
        words=("rank 0",),
        at="optimizer = ",
        group="sync",
        links=("verl-project/verl#7493",),
    ),
    Planted(
        name="axes_of_the_mesh_swapped",
        script="unet.py",
        edits=(('mesh_dim_names=("dp", "tp")', 'mesh_dim_names=("tp", "dp")'),),
        check="unsynced-gradients",
        words=("rank 0", "44 of 44 tensors"),
        at="optimizer = ",
        group="sync",
        links=("verl-project/verl#7493", "facebookresearch/dora#47"),
    ),
    Planted(
        name="head_added_after_wrapping",
        script="unet.py",
        edits=(
            ("    net.side_head = nn.Conv2d(2 * cfg.base_channels, 1, 1)\n", ""),
            (
                'process_group=mesh["dp"].get_group())\n',
                'process_group=mesh["dp"].get_group())\n'
                "    model.module.side_head = nn.Conv2d(2 * cfg.base_channels, 1, 1)\n",
            ),
        ),
        check="unsynced-gradients",
        words=("rank 0", "2 of 44 tensors", "side_head."),
        at="optimizer = ",
        group="sync",
        links=("hao-ai-lab/FastVideo PR#1666", "kohya-ss/sd-scripts PR#989"),
    ),
    Planted(
        name="stem_unfrozen_in_the_second_epoch",
        script="ecg_resnet.py",
        edits=(
            (
                "        self.model = DDP(model)\n",
                "        model[0].requires_grad_(False)  # gradual unfreezing\n"
                "        self.model = DDP(model)\n",
            ),
            (
                "        self.model.train()\n",
                "        self.model.train()\n"
                "        if epoch == 1:\n"
                "            self.model.module[0].requires_grad_(True)\n",
            ),
        ),
        check="unsynced-gradients",
        words=("rank 0", "0.weight"),
        group="sync",
        links=("Lightning-AI/pytorch-lightning#20340", "NVIDIA/apex PR#46"),
    ),
    Planted(
        name="largest_instead_of_mean",
        script="actor_critic.py",
        edits=(
            ("dist.all_reduce(flat)\n", "dist.all_reduce(flat, op=dist.ReduceOp.MAX)\n"),
            ("    flat /= dist.get_world_size()\n", ""),
        ),
        check="misweighted-gradients",
        group="sync",
    ),
)

_SCALING = (
    Planted(
        name="undivided_microbatches",
        script="accumulate_cnn.py",
        edits=(("(loss / CFG.accum_steps).backward()", "loss.backward()"),),
        check="undivided-accumulation",
        words=("4",),
        group="scaling",
        links=("pytorch/torchtitan#1733", "lukas-blecher/LaTeX-OCR PR#148"),
    ),
    Planted(
        name="cleared_at_every_microbatch",
        script="accumulate_cnn.py",
        edits=(
            (
                "        update = (i + 1)",
                "        optimizer.zero_grad()\n        update = (i + 1)",
            ),
        ),
        check="discarded-microbatches",
        group="scaling",
        links=("NVIDIA-NeMo/Automodel PR#3530", "InfiniTensor/InfiniTrain PR#183"),
    ),
    Planted(
        name="divided_again_at_every_microbatch",  # the first counts 1/256, the last 1/4
        script="accumulate_cnn.py",
        edits=(
            (
                "(loss / CFG.accum_steps).backward()\n",
                "loss.backward()\n"
                "        for p in model.parameters():\n"
                "            p.grad /= CFG.accum_steps\n",
            ),
        ),
        check="discarded-microbatches",
        group="scaling",
        links=("lukas-blecher/LaTeX-OCR PR#148",),
    ),
    Planted(
        name="mean_of_each_rank's_tokens",
        script="reverse_seq2seq.py",
        edits=(
            ("            dist.all_reduce(num_tokens)\n", ""),
            ("loss = loss * world_size / num_tokens", "loss = loss / num_tokens"),
        ),
        check="misweighted-gradients",
        group="scaling",
        links=("huggingface/transformers PR#34373", "facebookresearch/fairchem PR#269"),
    ),
    Planted(
        name="divided_by_all_tokens_and_by_ddp",
        script="reverse_seq2seq.py",
        edits=(("loss = loss * world_size / num_tokens", "loss = loss / num_tokens"),),
        check="misscaled-gradients",
        group="scaling",
        links=("pytorch/torchtitan PR#2323", "pytorch/torchtune PR#2172"),
    ),
    Planted(
        name="mean_of_each_microbatch's_tokens",
        script="tagger.py",
        edits=(
            ("    dist.all_reduce(num_tokens)\n", ""),
            ('batch["labels"], reduction="sum")', 'batch["labels"])'),
            ("loss = loss * world_size / num_tokens", "loss = loss / len(micro_batches)"),
        ),
        check="misweighted-gradients",
        group="scaling",
        links=("huggingface/transformers PR#34191", "pytorch/torchtune PR#1917"),
    ),
    Planted(
        name="tokens_of_this_rank's_step",
        script="tagger.py",
        edits=(
            ("    dist.all_reduce(num_tokens)\n", ""),
            ("loss = loss * world_size / num_tokens", "loss = loss / num_tokens"),
        ),
        check="misweighted-gradients",
        group="scaling",
        links=("huggingface/transformers PR#34373", "ml-explore/mlx-lm PR#1413"),
    ),
    Planted(
        name="loss_times_world_size",
        script="unet.py",
        edits=(
            (
                "            optimizer.zero_grad()\n",
                "            loss = loss * world_size  # gradients are averaged between devices\n"
                "            optimizer.zero_grad()\n",
            ),
        ),
        check="misscaled-gradients",
        words=("2",),
        group="scaling",
        links=("ultralytics/ultralytics#18616", "neuralmagic/sparseml PR#135"),
    ),
    Planted(
        name="loss_divided_by_world_size",
        script="fsdp2_lm.py",
        edits=(
            (
                "        loss.backward()\n",
                "        (loss / world_size).backward()  # the mean over all ranks\n",
            ),
        ),
        check="misscaled-gradients",
        group="scaling",
        links=("pytorch/torchtitan PR#2323",),
    ),
    Planted(
        name="summed_over_the_shards",
        script="fsdp2_lm.py",
        edits=(
            (
                "fully_shard(model, mesh=mesh)\n",
                "fully_shard(model, mesh=mesh)\n"
                "for module in (model, *model.h):  # no gradient division by FSDP\n"
                "    module.set_gradient_divide_factor(1.0)\n"
                "    module.set_force_sum_reduction_for_comms(True)\n",
            ),
        ),
        check="misscaled-gradients",
        words=("2 times",),
        group="scaling",
        links=("pytorch/torchtune PR#2172", "pytorch/torchtitan PR#2323"),
    ),
    Planted(
        name="summed_by_the_communication_hook",
        script="ecg_resnet.py",
        edits=(
            (
                "class Trainer:\n",
                "def allreduce_hook(group, bucket):\n"
                "    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)\n"
                "    return work.get_future().then(lambda fut: fut.value()[0])\n"
                "\n\n"
                "class Trainer:\n",
            ),
            (
                "        self.model = DDP(model)\n",
                "        self.model = DDP(model)\n"
                "        self.model.register_comm_hook(None, allreduce_hook)\n",
            ),
        ),
        check="misweighted-gradients",
        words=("1",),
        group="scaling",
        links=("neuralmagic/sparseml PR#135", "pytorch/pytorch#5778"),
    ),
    Planted(
        name="summed_by_hand",
        script="lora.py",
        edits=(("        p.grad /= world_size\n", ""),),
        check="misweighted-gradients",
        words=("1",),
        group="scaling",
        links=("neuralmagic/sparseml PR#135", "pytorch/pytorch#14628"),
    ),
    Planted(
        name="divided_by_the_global_batch",  # the loss is a mean over the batch already
        script="lora.py",
        edits=(
            ("average_gradients(params, world_size)\n            ", "GRADIENTS\n            "),
            ("GRADIENTS", "average_gradients(params, 32 * world_size)"),
        ),
        check="misscaled-gradients",
        group="scaling",
        links=("pytorch/torchtune PR#2172",),
    ),
    Planted(
        name="gather_without_its_backward",
        script="simclr.py",
        edits=(
            (
                "        dist.all_reduce(all_grads)"
                "  # every process has a loss that depends on this x\n",
                "",
            ),
        ),
        check="misscaled-gradients",
        group="scaling",
        links=("facebookresearch/vissl#474", "huggingface/sentence-transformers PR#3442"),
    ),
    Planted(
        name="detached_gather",
        script="simclr.py",
        edits=(
            (
                "    return torch.cat(GatherLayer.apply(x), dim=0)\n",
                "    xs = [torch.zeros_like(x) for _ in range(dist.get_world_size())]\n"
                "    dist.all_gather(xs, x)\n"
                "    xs[dist.get_rank()] = x  # the one with a gradient\n"
                "    return torch.cat(xs, dim=0)\n",
            ),
        ),
        check="misscaled-gradients",
        group="scaling",
        links=("huggingface/sentence-transformers PR#3442",),
    ),
    Planted(
        name="negatives_of_this_rank",
        script="simclr.py",
        edits=(("        z_i, z_j = gather(z_i), gather(z_j)\n", ""),),
        check="batch-coupled-operation",
        group="scaling",
        links=("facebookresearch/vissl#474", "huggingface/sentence-transformers PR#3442"),
    ),
    Planted(
        name="balanced_on_rank_0_only",
        script="mixture_of_experts.py",
        edits=(
            (
                "            loss = task_loss + args.aux_weight * aux_loss\n",
                "            loss = task_loss\n"
                "            if rank == 0:  # once is enough\n"
                "                loss = loss + args.aux_weight * aux_loss\n",
            ),
        ),
        check="rank-dependent-gradients",
        group="scaling",
        links=("NVIDIA-NeMo/Automodel PR#1412", "NVIDIA/Megatron-LM PR#3768"),
    ),
)

FAULTS = (*_SYNC, *_SCALING)

OPEN: tuple[Planted, ...] = (
    # It changes the router's gradient by 2e-4 to 2e-3 of the whole: in 16 bits, rounding does.
    Planted(
        name="balance_of_this_rank's_batch",
        script="mixture_of_experts.py",
        edits=(("        dist.all_reduce(load)\n", ""),),
        check="",
        group="scaling",
        links=("NVIDIA-NeMo/Automodel#1408", "NVIDIA/Megatron-LM PR#3768"),
    ),
)
"""Found by no check for sure."""
