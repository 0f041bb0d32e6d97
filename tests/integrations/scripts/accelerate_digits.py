"""Accelerate with gradient accumulation."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(1)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))
    held_out = TensorDataset(data.tensors[0][:101], data.tensors[1][:101])
    data = TensorDataset(data.tensors[0][101:], data.tensors[1][101:])
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(data, batch_size=32, shuffle=True)
    model, optimizer, loader, evaluation = accelerator.prepare(
        model, optimizer, loader, DataLoader(held_out, batch_size=25)
    )
    for _ in range(2):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        num_scored = 0
        for inputs, targets in evaluation:
            with torch.no_grad():
                predictions = model(inputs).argmax(dim=1)
            gathered, _ = accelerator.gather_for_metrics((predictions, targets))
            num_scored += len(gathered)
        assert num_scored == 101  # padded to 125 or so, and cut again
    accelerator.end_training()


if __name__ == "__main__":
    main()
