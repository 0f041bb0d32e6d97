"""Advantage actor-critic on a small pursuit game; every worker plays its own games."""

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributions import Categorical

NUM_ENVS = 16
HORIZON = 12
NUM_UPDATES = 40
GAMMA = 0.9
MAX_GRAD_NORM = 0.5


class Pursuit:
    """A walker on a square must reach a target that drifts; reward is minus the distance."""

    def __init__(self, num_envs, seed):
        self.rng = torch.Generator().manual_seed(seed)
        self.num_envs = num_envs

    def reset(self):
        self.me = torch.rand(self.num_envs, 2, generator=self.rng) * 10
        self.target = torch.rand(self.num_envs, 2, generator=self.rng) * 10
        return self.observe()

    def observe(self):
        return torch.cat((self.me, self.target), dim=1)

    def step(self, action):
        moves = torch.tensor([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
        self.me = (self.me + moves[action]).clamp(0, 10)
        self.target += 0.2 * torch.randn(self.num_envs, 2, generator=self.rng)
        return self.observe(), -(self.me - self.target).norm(dim=1) / 10


class RunningNorm(nn.Module):
    """Observations with the mean and variance seen so far (by all workers)."""

    count: torch.Tensor
    sums: torch.Tensor
    squares: torch.Tensor

    def __init__(self, size):
        super().__init__()
        self.register_buffer("count", torch.tensor(1e-4))
        self.register_buffer("sums", torch.zeros(size))
        self.register_buffer("squares", torch.zeros(size))

    def update(self, obs):
        seen = torch.cat((torch.tensor([float(len(obs))]), obs.sum(0), (obs**2).sum(0)))
        dist.all_reduce(seen)
        num = obs.shape[1]
        self.count += seen[0]
        self.sums += seen[1 : num + 1]
        self.squares += seen[num + 1 :]

    def forward(self, obs):
        mean = self.sums / self.count
        var = self.squares / self.count - mean**2
        return (obs - mean) / (var.clamp(min=0) + 1e-3).sqrt()


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = RunningNorm(4)
        self.actor = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4))
        self.critic = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, obs):
        x = self.norm(obs)
        return Categorical(logits=self.actor(x)), self.critic(x).squeeze(-1)


def average_grads(parameters):
    """One all-reduce for everything: flatten, sum, divide, copy back."""
    grads = [p.grad for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for g, chunk in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(chunk.view_as(g))


def whiten(x):
    """Mean 0 and variance 1 over the games of all workers."""
    sums = torch.stack((x.sum(), x.square().sum(), torch.tensor(float(len(x)))))
    dist.all_reduce(sums)
    mean = sums[0] / sums[2]
    return (x - mean) / ((sums[1] / sums[2] - mean**2).sqrt() + 1e-8)


dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
agent = ActorCritic()
torch.manual_seed(100 + rank)  # actions are sampled differently on every worker
env = Pursuit(NUM_ENVS, seed=rank)
optimizer = torch.optim.RMSprop(agent.parameters(), lr=5e-3, alpha=0.95)

for update in range(NUM_UPDATES):
    obs, history, actions, rewards = env.reset(), [], [], []
    for _ in range(HORIZON):
        with torch.no_grad():
            policy, _ = agent(obs)
        action = policy.sample()
        history.append(obs)
        actions.append(action)
        obs, reward = env.step(action)
        rewards.append(reward)
    with torch.no_grad():
        _, value = agent(obs)
    returns = []
    for reward in reversed(rewards):
        value = reward + GAMMA * value
        returns.insert(0, value)
    seen, taken, returns = torch.cat(history), torch.cat(actions), torch.cat(returns)

    policy, values = agent(seen)
    advantage = whiten(returns - values.detach())
    policy_loss = -(policy.log_prob(taken) * advantage).mean()
    value_loss = (returns - values).pow(2).mean()
    loss = policy_loss + 0.5 * value_loss - 0.01 * policy.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    average_grads(list(agent.parameters()))
    nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    agent.norm.update(seen)

    score = torch.cat(rewards).mean()
    dist.all_reduce(score)
    if rank == 0 and update % 5 == 0:
        print(f"update {update:3d}  reward per step {score / dist.get_world_size():.3f}")
dist.barrier()
dist.destroy_process_group()
