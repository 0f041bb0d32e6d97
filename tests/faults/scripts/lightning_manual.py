"""Forecasts a noisy wave with a GRU: Lightning starts its own processes, manual optimization.

python lightning_manual.py --devices 2
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false

import argparse
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanAbsoluteError


class Waves(Dataset):
    """Sixteen values of a wave with some noise, and the one that comes next."""

    def __init__(self, size, seed):
        rng = torch.Generator().manual_seed(seed)
        phase = torch.rand(size, 1, generator=rng) * 6.3
        speed = 0.2 + 0.4 * torch.rand(size, 1, generator=rng)
        waves = torch.sin(phase + speed * torch.arange(17))
        self.waves = waves + 0.05 * torch.randn(size, 17, generator=rng)

    def __len__(self):
        return len(self.waves)

    def __getitem__(self, index):
        return self.waves[index, :16, None], self.waves[index, 16]


class Forecaster(LightningModule):
    def __init__(self, lr, accumulate):
        super().__init__()
        self.automatic_optimization = False
        self.lr, self.accumulate = lr, accumulate
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)
        self.val_mae = MeanAbsoluteError()

    def forward(self, x):
        states, _ = self.gru(x)
        return self.head(states[:, -1]).squeeze(1)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        # scale losses by 1/N (for N batches of gradient accumulation)
        self.manual_backward(loss / self.accumulate)
        if (batch_idx + 1) % self.accumulate == 0:
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()

    def on_train_epoch_end(self):
        self.lr_schedulers().step()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.val_mae.update(self(x), y)
        self.log("val_mae", self.val_mae, on_epoch=True, prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.1)
    args = parser.parse_args()

    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    seed_everything(3, workers=True)
    trainer = Trainer(
        accelerator="cpu",
        devices=args.devices,
        strategy="ddp",
        max_epochs=args.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        Forecaster(args.lr, args.accumulate),
        DataLoader(Waves(1024, seed=0), batch_size=args.batch_size, shuffle=True, drop_last=True),
        DataLoader(Waves(128, seed=1), batch_size=64),
    )
    if trainer.is_global_zero:
        print(f"validation MAE {trainer.callback_metrics['val_mae']:.3f}")
