"""Under a check nothing drops anything out in training, and in evaluation nothing changes: in one
process that is patched as a checked one is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_DRIVER = """
import json, sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
x3 = torch.randn(2, 4, 8)
x4, x5 = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3, 3)
from torch.nn.functional import dropout as imported_before
heads = torch.randn(2, 2, 4, 8)

def module(made, *inputs):
    def call(training):
        out = made.train(training)(*inputs)
        return out[0] if isinstance(out, tuple) else out
    return call

class Drops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)

layer = dict(d_model=8, nhead=2, dim_feedforward=16, dropout=0.5, batch_first=True)
kinds = {
    "F.dropout": lambda on: F.dropout(x3, 0.5, on),
    "F.dropout default": lambda on: F.dropout(x3, training=on),
    "F.dropout named": lambda on: F.dropout(input=x3, p=0.5, training=on),
    "F.dropout1d": lambda on: F.dropout1d(x3, 0.5, on),
    "F.dropout2d": lambda on: F.dropout2d(x4, 0.5, on),
    "F.dropout3d": lambda on: F.dropout3d(x5, 0.5, on),
    "F.alpha_dropout": lambda on: F.alpha_dropout(x3, 0.5, on),
    "F.feature_alpha_dropout": lambda on: F.feature_alpha_dropout(x4, 0.5, on),
    "torch.dropout": lambda on: torch.dropout(x3, 0.5, on),
    "torch.dropout named": lambda on: torch.dropout(x3, p=0.5, train=on),
    "torch.feature_dropout": lambda on: torch.feature_dropout(x4, 0.5, on),
    "SDPA": lambda on: F.scaled_dot_product_attention(
        heads, heads, heads, dropout_p=0.5 if on else 0.0),
    "SDPA positional": lambda on: F.scaled_dot_product_attention(
        heads, heads, heads, None, 0.5 if on else 0.0, True),
    "nn.Dropout": module(nn.Dropout(0.5), x3),
    "nn.Dropout1d": module(nn.Dropout1d(0.5), x3),
    "nn.Dropout2d": module(nn.Dropout2d(0.5), x4),
    "nn.Dropout3d": module(nn.Dropout3d(0.5), x5),
    "nn.AlphaDropout": module(nn.AlphaDropout(0.5), x3),
    "nn.FeatureAlphaDropout": module(nn.FeatureAlphaDropout(0.5), x4),
    "nn.MultiheadAttention": module(
        nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), x3, x3, x3),
    "nn.TransformerEncoderLayer": module(nn.TransformerEncoderLayer(**layer), x3),
    "nn.TransformerDecoderLayer": module(nn.TransformerDecoderLayer(**layer), x3, x3),
    "nn.LSTM": module(nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True), x3),
    "nn.GRU": module(nn.GRU(8, 8, 3, dropout=0.5, batch_first=True), x3),
    "nn.RNN": module(nn.RNN(8, 8, 2, dropout=0.5, batch_first=True), x3),
    "in a module": module(Drops(), x3),
    "imported before": lambda on: imported_before(x3, 0.5, on),
    "method in place": lambda on: F.dropout(x3.clone(), 0.5, on, True),
    "nn.Dropout in place": lambda on: nn.Dropout(0.5, inplace=True).train(on)(x3.clone()),
}
harmless = {
    "p=0": lambda on: F.dropout(x3, 0.0, on),
    "nn.Dropout(0)": module(nn.Dropout(0.0), x3),
    "one layer": module(nn.LSTM(8, 8, 1, batch_first=True), x3),
    "SDPA without": lambda on: F.scaled_dot_product_attention(heads, heads, heads),
}

def close(one, other):
    return torch.allclose(one, other, atol=1e-6, equal_nan=True)

before = {name: (call(True), call(False)) for name, call in kinds.items()}

from scaleproof.observe import current
from scaleproof.observe.dropout import switch_dropout_off
switch_dropout_off()
look = SimpleNamespace(drew_dropout=False)
current.observer = SimpleNamespace(optimizers=SimpleNamespace(look=look))

found = {}
for name, call in {**kinds, **harmless}.items():
    look.drew_dropout = False
    evaluated = call(False)
    remembered_evaluating = look.drew_dropout
    state = torch.random.get_rng_state()
    trained = call(True)
    found[name] = {
        "off": close(trained, evaluated),
        "draws": not torch.equal(state, torch.random.get_rng_state()),
        "dropped before": name in before and not close(*before[name]),
        "evaluation as before": name not in before or close(before[name][1], evaluated),
        "remembered": look.drew_dropout,
        "remembered in evaluation": remembered_evaluating,
    }
lstm = nn.LSTM(8, 8, 2, dropout=0.5)
lstm(x3)
found["probability"] = lstm.dropout
print(json.dumps(found))
"""

KINDS = (
    *("F.dropout", "F.dropout default", "F.dropout named", "F.dropout1d", "F.dropout2d"),
    *("F.dropout3d", "F.alpha_dropout", "F.feature_alpha_dropout", "torch.dropout"),
    *("torch.dropout named", "torch.feature_dropout", "SDPA", "SDPA positional", "nn.Dropout"),
    *("nn.Dropout1d", "nn.Dropout2d", "nn.Dropout3d", "nn.AlphaDropout", "in a module"),
    *("nn.FeatureAlphaDropout", "nn.MultiheadAttention", "nn.TransformerEncoderLayer"),
    *("nn.TransformerDecoderLayer", "nn.LSTM", "nn.GRU", "nn.RNN", "method in place"),
    "nn.Dropout in place",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script: Path = tmp_path_factory.mktemp("dropout") / "driver.py"
    script.write_text(_DRIVER)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_off_in_training_and_remembered(found: dict[str, Any], name: str) -> None:
    assert found[name]["dropped before"], "the case drops nothing out at all"
    assert found[name]["off"]
    assert not found[name]["draws"]
    assert found[name]["remembered"]


@pytest.mark.parametrize("name", KINDS)
def test_evaluation_is_untouched(found: dict[str, Any], name: str) -> None:
    assert found[name]["evaluation as before"]
    assert not found[name]["remembered in evaluation"]


@pytest.mark.parametrize("name", ["p=0", "nn.Dropout(0)", "one layer", "SDPA without"])
def test_what_would_not_have_drawn_is_not_remembered(found: dict[str, Any], name: str) -> None:
    assert found[name]["off"]
    assert not found[name]["remembered"]


def test_a_modules_own_probability_stays(found: dict[str, Any]) -> None:
    assert found["probability"] == 0.5
