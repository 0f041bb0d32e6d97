"""Breast-cancer screening in one process. It reports its quality with the two optional calls of
Scaleproof, which do nothing unless the script is observed.

python examples/single_process.py --epochs 3
"""

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import scaleproof


class Screening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(features))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)

    features, labels = load_breast_cancer(return_X_y=True)
    order = torch.randperm(len(labels)).tolist()
    train_ids, val_ids = order[:400], order[400:]
    features = StandardScaler().fit(features[train_ids]).transform(features)
    data_set = TensorDataset(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))
    train_loader = DataLoader(Subset(data_set, train_ids), args.batch_size, shuffle=True)
    val_loader = DataLoader(Subset(data_set, val_ids), batch_size=64)

    model = Screening()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(args.epochs):
        model.train()
        total_loss = 0.0
        for inputs, targets in train_loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            total_loss += loss.item()

        model.eval()
        with torch.no_grad():
            scored = [(model(inputs), targets) for inputs, targets in val_loader]
        logits, targets = (torch.cat(parts) for parts in zip(*scored, strict=True))
        predictions = logits.argmax(dim=1)
        val_loss = criterion(logits, targets).item()
        accuracy = (predictions == targets).float().mean().item()
        print(
            f"epoch {epoch}: loss {total_loss / len(train_loader):.3f} "
            f"validation loss {val_loss:.3f} accuracy {accuracy:.1%}"
        )
        scaleproof.report_metrics(epoch=epoch, loss=val_loss, accuracy=accuracy)
        scaleproof.report_predictions(targets=targets, predictions=predictions, sample_ids=val_ids)


if __name__ == "__main__":
    main()
