"""Parts of other packages: one of each kind that this package has never heard of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import Field
from small_policies import make, make_batch, shipped, train
from torch import nn

from teamvla.errors import RegistryError
from teamvla.models import (
    ACTION_HEAD_REGISTRY,
    ENCODER_REGISTRY,
    FUSION_REGISTRY,
    MODELS,
    PROJECTOR_REGISTRY,
    SENSOR_ENCODER_REGISTRY,
    TEMPORAL_REGISTRY,
    TEXT_ENCODER_REGISTRY,
)
from teamvla.models.features import Features
from teamvla.models.heads.base import HeadLoss, RegressionConfig, RegressionHead

#: one file and one line each: the line is the entry point
FILES = {
    "partner_parts/__init__.py": "",
    "partner_parts/head.py": '''
from typing import Literal
from pydantic import Field
from torch import nn
from teamvla.models.heads.base import RegressionConfig, RegressionHead


class TiedConfig(RegressionConfig):
    type: Literal["tied"] = Field(default="tied", description="One action for the whole chunk.")
    width: int = Field(default=16, ge=1, description="Width of the hidden layer.")


class TiedHead(RegressionHead):
    """The same action in every row."""

    Config = TiedConfig

    def __init__(self, input_dim, action_dim, chunk_size=1, **options):
        super().__init__(input_dim, action_dim, chunk_size, **options)
        width = self.config.width
        self.layers = nn.Sequential(
            nn.Linear(input_dim, width), nn.GELU(), nn.Linear(width, action_dim)
        )

    def raw(self, features):
        return self.layers(features.summary)[:, None].expand(-1, self.chunk_size, -1).float()

    def loss(self, features, target, is_pad):
        return self.regression(self.raw(features), target, is_pad)

    def sample(self, features, generator=None):
        return self.finish(self.raw(features))
''',
    "partner_parts/encoder.py": '''
from typing import Literal
from pydantic import Field
from torch import nn
from teamvla.models.encoders.base import EncoderConfig, VisionBackbone


class MeanColourConfig(EncoderConfig):
    type: Literal["mean_colour"] = Field(default="mean_colour", description="One colour a picture.")


class MeanColour(VisionBackbone):
    """A picture's mean colour, the only token."""

    Config = MeanColourConfig

    def __init__(self, config, picture):
        super().__init__(config, picture)
        self.dim = self.features = picture[0]
        self.num_tokens = 1

    def forward(self, images):
        return images.mean((2, 3)).unsqueeze(1)

    def pooling(self):
        return nn.Flatten(-2)
''',
    "partner_parts/text.py": '''
from typing import Literal
import torch
from pydantic import Field
from torch import nn
from teamvla.models.encoders.base import EncoderConfig, TextEncoder


class LengthConfig(EncoderConfig):
    type: Literal["length"] = Field(default="length", description="How long it is.")


class Length(TextEncoder):
    """An instruction's length, the only token."""

    Config = LengthConfig

    def __init__(self, config, statistics=None):
        super().__init__(config, statistics)
        self.dim = 4
        self.layer = nn.Linear(1, self.dim)

    def tokenize(self, texts):
        lengths = torch.tensor([[len(text)] for text in texts])
        return {"input_ids": lengths, "attention_mask": torch.ones_like(lengths, dtype=torch.bool)}

    def forward(self, input_ids, attention_mask):
        return self.layer(input_ids[..., None] / 100)
''',
    "partner_parts/fusion.py": '''
from typing import Literal
from pydantic import Field
from torch import nn
from teamvla.models.features import Features
from teamvla.models.fusion.base import Fusion, FusionConfig


class FeltConfig(FusionConfig):
    type: Literal["felt"] = Field(default="felt", description="The state alone.")


class Felt(Fusion):
    """The state and the words added up; pictures are not looked at."""

    Config = FeltConfig
    dim = 16

    def __init__(self, config, vision, num_cameras, text, state_dim):
        super().__init__(config, vision, num_cameras, text, state_dim)
        self.state, self.text = nn.Linear(state_dim, self.dim), nn.Linear(text.dim, self.dim)

    def forward(self, seen):
        return Features.of(self.state(seen.state) + self.text(seen.text.mean()))
''',
    "partner_parts/policy.py": '''
from typing import Annotated, Literal
from pydantic import Field
from teamvla.config.bytype import ByType
from teamvla.models import ACTION_HEAD_REGISTRY
from teamvla.models.composed import ComposedConfig, ComposedPolicy
from teamvla.models.heads.base import HeadConfig
from partner_parts.head import TiedConfig


class PartnerConfig(ComposedConfig):
    type: Literal["partner"] = Field(default="partner", description="Of another package.")
    head: Annotated[HeadConfig, ByType(ACTION_HEAD_REGISTRY, "tied")] = TiedConfig()


class PartnerPolicy(ComposedPolicy):
    """Everything as usual but the head."""

    Config = PartnerConfig
''',
    "partner_parts-1.0.dist-info/METADATA": """Metadata-Version: 2.1
Name: partner-parts
Version: 1.0
""",
    "partner_parts-1.0.dist-info/entry_points.txt": """
[teamvla.models]
partner = partner_parts.policy:PartnerPolicy
[teamvla.action_heads]
tied = partner_parts.head:TiedHead
[teamvla.encoders]
mean_colour = partner_parts.encoder:MeanColour
[teamvla.text_encoders]
length = partner_parts.text:Length
[teamvla.fusions]
felt = partner_parts.fusion:Felt
""",
}  # fmt: skip
PROJECT = """
extends: train_bc
model:
  type: partner
  vision: {type: mean_colour}
  language: {type: length}
  fusion: {type: felt}
  head: {type: tied, width: 24}
loss: {collision: 0.0}
"""
#: everything in one interpreter, as it takes seconds to start
SESSION = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from small_policies import CONTRACT, STATISTICS, make_batch, train
from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.models import LossConfig, PolicyConfig, build_policy

said = {}
for override in ["seed=0", *sys.argv[1:]]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = run(["config", "check", "mine.yaml", "--set", override])
    said[override] = [code, out.getvalue(), err.getvalue()]

project = Project.load("mine.yaml")
model, loss = project.section("model", PolicyConfig), project.section("loss", LossConfig)
policy, batch = build_policy(model, CONTRACT, STATISTICS, loss), make_batch(chunk=16)
batch["actions"][:] = batch["actions"][:, :1]
before = policy.loss(batch)["loss"].item()
train(policy, batch, 60, lr=3e-3)
chunk = policy.predict_action_chunk(batch["observations"], batch["language"])
parts = [policy, policy.vision, policy.language, policy.fusion, policy.heads[0]]
print(json.dumps({
    "check": said,
    "loss": [before, policy.loss(batch)["loss"].item()],
    "tied": bool((chunk == chunk[:, :1]).all()),
    "parts": [type(part).__name__ for part in parts],
}))
"""
REFUSED = {
    "model.head.widht=3": "unknown key 'model.head.widht'; did you mean 'width'?",
    "model.head.width=0": "model.head.width: input should be greater than or equal to 1, got 0",
    "model.head.type=teid": "no such choice, got 'teid'; did you mean 'tied'?",
    "model.vision.type=mean_color": "got 'mean_color'; did you mean 'mean_colour'?",
    "model.language.type=lenght": "got 'lenght'; did you mean 'length'?",
    "model.fusion.type=feld": "got 'feld'; did you mean 'felt'?",
    "model.type=parner": "Did you mean 'partner'?",
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh interpreter says that finds an installed package of somebody else's."""
    folder = tmp_path_factory.mktemp("partner")
    for name, text in {"mine.yaml": PROJECT, **FILES}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(folder), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", SESSION, *REFUSED],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_configuration_may_name_the_parts_of_another_package(session):
    code, out, err = session["check"]["seed=0"]
    assert code == 0, err
    assert out.startswith("ok  mine.yaml")


@pytest.mark.parametrize("override", REFUSED)
def test_what_is_wrong_with_them_is_answered_as_with_ones_own(session, override):
    code, _, err = session["check"][override]
    assert code == 2
    assert REFUSED[override] in err


def test_the_parts_of_another_package_are_built_and_learn(session):
    assert session["parts"] == ["PartnerPolicy", "MeanColour", "Length", "Felt", "TiedHead"]
    before, after = session["loss"]
    assert after < before / 2
    assert session["tied"]


# At run time.


class HalfConfig(RegressionConfig):
    """Settings of :class:`HalfHead`."""

    type: Literal["my_head"] = Field(default="my_head", description="Half of everything.")


class HalfHead(RegressionHead):
    """Half of what a linear layer says."""

    Config = HalfConfig

    def __init__(self, input_dim: int, action_dim: int, chunk_size: int = 1, **options: Any):
        super().__init__(input_dim, action_dim, chunk_size, **options)
        self.layer = nn.Linear(input_dim, self.chunk_size * action_dim)

    def loss(self, features: Features, target: torch.Tensor, is_pad: torch.Tensor) -> HeadLoss:
        raw = 0.5 * self.layer(features.summary).float()
        return self.regression(raw.reshape(target.shape), target, is_pad)

    def sample(self, features: Features, generator: torch.Generator | None = None) -> torch.Tensor:
        raw = 0.5 * self.layer(features.summary).float()
        return self.finish(raw.reshape(-1, self.chunk_size, self.action_dim))


@pytest.mark.usefixtures("registries")
def test_a_head_is_entered_in_the_registry_as_in_a_dictionary():
    ACTION_HEAD_REGISTRY["my_head"] = HalfHead
    assert "my_head" in ACTION_HEAD_REGISTRY
    assert ACTION_HEAD_REGISTRY["my_head"] is HalfHead
    policy, batch = make("single_brain", head="my_head"), make_batch()
    assert isinstance(policy.heads[0], HalfHead)
    before = policy.loss(batch)["loss"].item()
    assert train(policy, batch, 40, lr=3e-3).loss(batch)["loss"].item() < before / 2


@pytest.mark.usefixtures("registries")
def test_a_name_is_given_once_and_an_unknown_one_answered_with_the_nearest():
    ACTION_HEAD_REGISTRY["my_head"] = HalfHead
    with pytest.raises(RegistryError, match="Did you mean 'my_head'"):
        ACTION_HEAD_REGISTRY["my_haed"]
    with pytest.raises(RegistryError, match="expected a new name, got one that is taken"):
        ACTION_HEAD_REGISTRY["mlp"] = HalfHead


REGISTRIES = {
    "policies": MODELS,
    "heads": ACTION_HEAD_REGISTRY,
    "vision encoders": ENCODER_REGISTRY,
    "text encoders": TEXT_ENCODER_REGISTRY,
    "fusions": FUSION_REGISTRY,
    "sensor encoders": SENSOR_ENCODER_REGISTRY,
    "temporal parts": TEMPORAL_REGISTRY,
    "projectors": PROJECTOR_REGISTRY,
}


@pytest.mark.parametrize("parts", REGISTRIES)
def test_every_entry_keeps_settings_that_bear_its_name(parts):
    registry: Any = REGISTRIES[parts]
    for name in shipped(registry):
        assert registry[name].Config().type == name
