"""Graph network on random graphs: do they fall into two communities? Edges dropped at random."""

import copy

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn import Linear, Module, ModuleList
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler

HIDDEN, LAYERS, EPOCHS, BATCH = 32, 3, 4, 20


def random_graph(rng, label):
    """Adjacency of 16 to 24 nodes; the same number of edges for both labels, about."""
    num_nodes = int(rng.integers(16, 25))
    side = np.arange(num_nodes) % 2
    inside, across = (0.34, 0.14) if label else (0.24, 0.24)
    chance = np.where(side[:, None] == side[None, :], inside, across)
    upper = np.triu(rng.random((num_nodes, num_nodes)) < chance, 1)
    src, dst = np.nonzero(upper | upper.T)
    return num_nodes, np.stack([src, dst]).astype(np.int64), label


class Graphs(Dataset):
    def __init__(self, size, seed, drop_edges=0.0):
        rng = np.random.default_rng(seed)
        self.graphs = [random_graph(rng, int(rng.integers(2))) for _ in range(size)]
        self.drop_edges = drop_edges

    def __len__(self):
        return len(self.graphs)

    def __getitem__(self, idx):
        num_nodes, edge_index, label = self.graphs[idx]
        if self.drop_edges:
            edge_index = edge_index[:, np.random.rand(edge_index.shape[1]) > self.drop_edges]
        return num_nodes, torch.from_numpy(edge_index), label


def collate(graphs):
    """One big graph without edges between its parts; ``batch`` says whose a node is."""
    edges, batch, labels, offset = [], [], [], 0
    for number, (num_nodes, edge_index, label) in enumerate(graphs):
        edges.append(edge_index + offset)
        batch.append(torch.full((num_nodes,), number))
        labels.append(label)
        offset += num_nodes
    return torch.cat(edges, dim=1), torch.cat(batch), torch.tensor(labels)


class GraphConv(Module):
    def __init__(self, dim):
        super().__init__()
        self.lin_self, self.lin_neigh = Linear(dim, dim), Linear(dim, dim)

    def forward(self, x, edge_index):
        src, dst = edge_index
        message = torch.zeros_like(x).index_add_(0, dst, x[src])
        degree = torch.zeros(len(x)).index_add_(0, dst, torch.ones(len(dst))).clamp(min=1)
        return F.relu(self.lin_self(x) + self.lin_neigh(message / degree[:, None])) + x


class GNN(Module):
    def __init__(self):
        super().__init__()
        self.embed = Linear(3, HIDDEN)
        self.convs = ModuleList(GraphConv(HIDDEN) for _ in range(LAYERS))
        self.out = Linear(HIDDEN, 2)

    def forward(self, edge_index, batch, num_graphs):
        num_nodes = len(batch)
        first = torch.searchsorted(batch, batch)  # a node's graph begins here
        parity = (torch.arange(num_nodes) - first) % 2
        x = F.one_hot(parity, 2).float()
        degree = torch.zeros(num_nodes).index_add_(0, edge_index[1], torch.ones(len(edge_index[1])))
        x = self.embed(torch.cat([x, degree[:, None] / 8], dim=1))
        for conv in self.convs:
            x = conv(x, edge_index)
        sums = torch.zeros(num_graphs, HIDDEN).index_add_(0, batch, x)
        return self.out(sums / torch.bincount(batch, minlength=num_graphs)[:, None])


def seed_worker(worker_id):
    np.random.seed(torch.initial_seed() % 2**32)


@torch.no_grad()
def test(model, loader):
    model.eval()
    counts = torch.zeros(2)
    for edge_index, batch, y in loader:
        pred = model(edge_index, batch, len(y)).argmax(dim=1)
        counts += torch.tensor([(pred == y).sum().item(), len(y)])
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


def main():
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(42 + rank)
    train_set, val_set = Graphs(600, seed=0, drop_edges=0.05), Graphs(151, seed=1)
    sampler = DistributedSampler(train_set, num_replicas=world_size, rank=rank)
    train_loader = DataLoader(
        train_set, BATCH, sampler=sampler, collate_fn=collate, num_workers=2,
        worker_init_fn=seed_worker,
    )  # fmt: skip
    val_part = Subset(val_set, range(rank, len(val_set), world_size))
    val_loader = DataLoader(val_part, 64, collate_fn=collate)

    model = DistributedDataParallel(GNN())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    best_acc, best_state = 0.0, None
    for epoch in range(1, EPOCHS + 1):
        sampler.set_epoch(epoch)
        model.train()
        loss = torch.zeros(())
        for edge_index, batch, y in train_loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(edge_index, batch, len(y)), y)
            loss.backward()
            optimizer.step()
        acc = test(model, val_loader)
        if acc > best_acc:
            best_acc, best_state = acc, copy.deepcopy(model.module.state_dict())
        if rank == 0:
            print(f"Epoch: {epoch:02d}, Loss: {loss.item():.4f}, Val: {acc:.4f}")
    model.module.load_state_dict(best_state)  # what would be published
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
