"""Faults of clipping, of precision and of the state of replicas, planted in the scripts of
``planted_gradients.py``."""

from faults.scripts import Planted

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

FAULTS = (*_CLIPPING, *_STATE)
