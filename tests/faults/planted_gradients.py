"""Faults of gradients and of the state of replicas, planted in scripts of many styles.

Their classes: synchronisation, scaling, clipping, precision, state. Each is silent: the script ends
well and its loss looks normal. Its sound twin is the script itself.
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

_CLIPPING = (
    Planted(
        name="own_clipping_before_the_average",
        script="actor_critic.py",
        edits=(
            (
                "    dist.all_reduce(flat)\n",
                "    flat *= (MAX_GRAD_NORM / (flat.norm() + 1e-6)).clamp(max=1.0)\n"
                "    dist.all_reduce(flat)\n",
            ),
            ("    nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)\n", ""),
        ),
        check="clipped-before-reduction",
        words=("rank",),
        group="clipping",
        links=("horovod/horovod#1346",),
    ),
    Planted(
        name="norm_of_the_local_shard",
        script="fsdp2_lm.py",
        edits=(
            (
                "        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)\n",
                "        local_grads = [p.grad.to_local() for p in model.parameters()]\n"
                "        norm = torch.stack([g.norm() for g in local_grads]).norm()\n"
                "        for g in local_grads:\n"
                "            g.mul_((grad_clip / (norm + 1e-6)).clamp(max=1.0))\n",
            ),
        ),
        check="clipped-before-reduction",
        words=("rank",),
        group="clipping",
        links=("pytorch/pytorch#72548", "PrimeIntellect-ai/OpenDiloco PR#6"),
    ),
    Planted(
        name="every_tensor_for_itself",
        script="fsdp2_lm.py",
        edits=(
            (
                "        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)\n",
                "        for p in model.parameters():\n"
                "            nn.utils.clip_grad_norm_(p, grad_clip / 5)\n",
            ),
        ),
        check="clipped-at-the-wrong-norm",
        group="clipping",
        links=("pytorch/torchtitan#596",),
    ),
    Planted(
        name="clipped_without_unscaling",
        script="amp_tabular.py",
        edits=(("        self.scaler.unscale_(self.optimizer)\n", ""),),
        check="unscaled-clipping",
        group="clipping",
    ),
    Planted(
        name="unscaled_after_clipping",
        script="amp_tabular.py",
        edits=(
            ("        self.scaler.unscale_(self.optimizer)\n", ""),
            (
                "        self.scaler.step(self.optimizer)\n",
                "        self.scaler.unscale_(self.optimizer)\n"
                "        self.scaler.step(self.optimizer)\n",
            ),
        ),
        check="unscaled-clipping",
        group="clipping",
    ),
)

_STATE = (
    Planted(
        name="a_loss_scale_of_each_rank's_own",
        script="amp_tabular.py",
        edits=(("init_scale=2.0**12", "init_scale=2.0**12 if rank == 0 else 2.0**13"),),
        check="schedule-drift",
        words=("rank 1", "loss scale"),
        group="precision",
        links=("pytorch/pytorch#136009",),
    ),
    Planted(
        name="own_observation_statistics",
        script="actor_critic.py",
        edits=(("        dist.all_reduce(seen)\n", ""),),
        check="buffer-drift",
        words=("rank 1", "norm."),
        group="state",
        links=("iCog-Labs-Dev/PC-Transformers PR#135",),
    ),
    Planted(
        name="buffers_not_broadcast",
        script="ecg_resnet.py",
        edits=(("DDP(model)", "DDP(model, broadcast_buffers=False)"),),
        check="buffer-drift",
        words=("rank 1", "running_"),
        group="state",
        links=("pytorch/pytorch#13711", "open-mmlab/mmdetection PR#4582"),
    ),
    Planted(
        name="wrapped_without_the_first_broadcast",
        script="ecg_resnet.py",
        edits=(("DDP(model)", "DDP(model, init_sync=False)"),),
        check="replica-drift",
        words=("rank 1",),
        group="state",
        links=("sparticlesteve/pytorch-benchmarks PR#1",),
    ),
    Planted(
        name="teacher_updated_on_rank_0",
        script="mean_teacher.py",
        edits=(
            (
                "            update_ema(teacher, student.module, EMA_DECAY)\n",
                "            if rank == 0:\n"
                "                update_ema(teacher, student.module, EMA_DECAY)\n",
            ),
        ),
        check="replica-drift",
        words=("rank 1",),
        group="state",
    ),
    Planted(
        name="teacher_copied_before_the_broadcast",
        script="mean_teacher.py",
        edits=(
            ("    student = DDP(build_net())\n", "    student = build_net()\n"),
            (
                "copy.deepcopy(student.module).requires_grad_(False)\n",
                "copy.deepcopy(student).requires_grad_(False)\n    student = DDP(student)\n",
            ),
            ("    # The teacher starts as the student, after DDP has sent", "    # DDP sends"),
        ),
        check="replica-drift",
        words=("rank 1",),
        group="state",
        links=("sparticlesteve/pytorch-benchmarks PR#1",),
    ),
    Planted(
        name="frozen_base_of_each_rank's_own",
        script="lora.py",
        edits=(
            (
                "        dist.broadcast(p.data, src=0)\n",
                "        if p.requires_grad:\n            dist.broadcast(p.data, src=0)\n",
            ),
        ),
        check="replica-drift",
        words=("rank 1",),
        group="state",
        links=("sparticlesteve/pytorch-benchmarks PR#1",),
    ),
)

FAULTS = (*_SYNC, *_SCALING, *_CLIPPING, *_STATE)

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
