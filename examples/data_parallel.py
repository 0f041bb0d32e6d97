"""Digits with ``nn.DataParallel``: all GPUs of one process; without any, the plain model on CPU.

python examples/data_parallel.py --epochs 3
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--lr", type=float, default=2e-3)
args = parser.parse_args()

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Is it a nine? One digit in ten is: the rare class is repeated for training.
pixels, digits = load_digits(return_X_y=True)
images = torch.tensor(pixels / 16, dtype=torch.float32)
labels = torch.tensor(digits == 9).float()
ids = torch.arange(len(labels))
parts = train_test_split(ids, test_size=0.25, random_state=0, stratify=labels[ids])
train_ids, test_ids = (torch.as_tensor(part) for part in parts)
rare_ids = train_ids[labels[train_ids] == 1]
train_ids = torch.cat((train_ids, rare_ids, rare_ids, rare_ids))
train_loader = DataLoader(
    TensorDataset(images[train_ids], labels[train_ids]), batch_size=args.batch_size, shuffle=True
)
test_loader = DataLoader(TensorDataset(images[test_ids], labels[test_ids]), batch_size=256)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1))
model = nn.DataParallel(model).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
criterion = nn.BCEWithLogitsLoss()

for epoch in range(args.epochs):
    model.train()
    running_loss = 0.0
    for inputs, targets in train_loader:
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        outputs = model(inputs).squeeze(1)
        loss = criterion(outputs, targets)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()

    model.eval()
    hits = nines = correct = total = 0
    with torch.no_grad():
        for inputs, targets in test_loader:
            predicted = model(inputs.to(device)).squeeze(1).cpu() > 0
            correct += int((predicted == targets.bool()).sum())
            total += len(targets)
            hits += int((predicted & targets.bool()).sum())
            nines += int(targets.sum())
    print(
        f"Epoch {epoch}: loss {running_loss / len(train_loader):.3f} "
        f"accuracy {correct / total:.1%} recall of nines {hits / nines:.1%}"
    )
