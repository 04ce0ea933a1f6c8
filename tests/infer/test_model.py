"""A model folder gives back what was trained, whatever a method predicts with."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import nn

from conftest import SPACE
from labelwise.formats.tensors import load_tensors
from labelwise.infer.model import load_model, save_model
from labelwise.infer.sliding_window import InferenceConfig
from labelwise.methods import METHODS
from labelwise.methods.base import Card, Method, NetFactory, Softmax
from labelwise.nets.parts import SegmentationNet
from labelwise.preprocess.pipeline import IntensityRule, Plan

IMAGES = torch.linspace(-1, 1, 32**3).reshape(1, 1, 32, 32, 32)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AnswerConfig:
    answer: str = "whole"


class Answer(Method):
    """A network, one with another decoder, and a critic; `answer` says what predicts."""

    card = Card("Answer", "", "Predicts in several ways.", frozenset({"full"}))
    Config = AnswerConfig

    def __init__(self, nets: NetFactory, config: AnswerConfig):
        super().__init__()
        self.config = config
        self.whole = nets.network()
        decoder = nets.decoder("nearest")
        self.other = SegmentationNet(
            nets.encoder(), decoder, nets.head(decoder.channels[-1], nets.num_classes)
        )
        self.critic = nn.Linear(2, 2)

    def forward(self, batch, progress):
        return {}  # it only predicts

    def predictor(self):
        answers = {
            "whole": Softmax(self.whole),
            "other": Softmax(self.other),
            "mean": Mean(self.whole, self.other),
        }
        return answers[self.config.answer]


class Mean(nn.Module):
    def __init__(self, *networks: nn.Module):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images):
        return torch.stack([network(images).softmax(dim=1) for network in self.networks]).mean(dim=0)


@pytest.mark.parametrize(("answer", "kind"), [("whole", "softmax"), ("other", "method"), ("mean", "method")])
def test_the_scores_of_a_loaded_model_are_those_of_the_trained_one(tmp_path, monkeypatch, answer, kind):
    monkeypatch.setitem(METHODS, "answer", f"{__name__}:Answer")
    torch.manual_seed(0)
    settings = {"width": 4, "dropout": 0.0, "upsampling": "trilinear"}
    nets = NetFactory("vnet", settings, dims=3, in_channels=1, num_classes=SPACE.num_classes)
    method = Answer(nets, AnswerConfig(answer))
    plan = Plan(intensity={"normalised": IntensityRule("none")})
    info = {
        "name": "answer",
        "classes": SPACE.names,
        "intensities": ("normalised",),
        "plan": plan.to_json(),
        "method": "answer",
        "method_settings": {"answer": answer},
        "patch_size": (32, 32, 32),
        "inference": asdict(InferenceConfig()),
    }
    assert save_model(tmp_path / "model", info, method, nets).predictor == kind
    weights, _ = load_tensors(tmp_path / "model" / "weights.safetensors")
    assert not any("critic" in name for name in weights)
    loaded = load_model(tmp_path / "model").predictor
    with torch.inference_mode():
        torch.testing.assert_close(loaded(IMAGES), method.predictor().eval()(IMAGES))
