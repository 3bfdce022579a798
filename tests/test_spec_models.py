"""The usage examples of the specification of models, and every parameter in its tables."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from teamvla.errors import ConfigError, RegistryError
from teamvla.models import ModelRegistry, PolicyConfig, register_model
from teamvla.models.bc import BCConfig
from teamvla.models.vla import VLAConfig


def finite(output: dict[str, Any], *names: str) -> bool:
    """Whether all of these scalars are there, and finite."""
    return all(output[name].shape == () and output[name].isfinite() for name in names)


# The registry.


def test_both_models_are_listed():
    assert {"bc", "vla"} <= set(ModelRegistry.list())


def test_models_are_created_by_name():
    model: Any = ModelRegistry.create("bc", state_dim=20, action_dim=4)
    assert model.predict({"state": torch.randn(3, 20)}).shape == (3, 4)
    model = ModelRegistry.create(
        "vla", image_size=64, embed_dim=128, num_heads=4, num_layers=4, action_dim=4
    )
    assert model.predict({"image": torch.rand(3, 3, 64, 64)}).shape == (3, 4)


@pytest.mark.usefixtures("registries")
def test_a_module_of_ones_own_can_be_registered():
    @register_model("my_model")
    class MyModel(nn.Module):
        def __init__(self, state_dim: int = 20, action_dim: int = 4, **kwargs: Any) -> None:
            super().__init__()
            self.net = nn.Linear(state_dim, action_dim)

        def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
            actions = self.net(batch["observations"]["state"])
            loss = nn.functional.mse_loss(actions, batch["actions"])
            return {"predicted_actions": actions, "loss": loss}

        def predict(self, obs: dict[str, Any]) -> torch.Tensor:
            actions: torch.Tensor = self.net(obs["state"])
            return actions

    assert "my_model" in ModelRegistry.list()
    model: Any = ModelRegistry.create("my_model", state_dim=6)
    assert isinstance(model, MyModel)
    assert model.predict({"state": torch.randn(2, 6)}).shape == (2, 4)


# Behaviour cloning.


def test_bc_is_used_as_shown():
    model: Any = ModelRegistry.create(
        "bc",
        state_dim=20,
        action_dim=4,
        use_image=True,
        image_size=128,
    )
    batch = {
        "observations": {
            "state": torch.randn(8, 20),
            "image": torch.randn(8, 3, 128, 128),
        },
        "actions": torch.randn(8, 4),
    }
    output = model(batch)
    assert output["predicted_actions"].shape == (8, 4)
    assert finite(output, "loss", "action_mse", "action_mae")
    model.eval()
    off = model(batch)["predicted_actions"] - batch["actions"]
    torch.testing.assert_close(model(batch)["action_mse"], off.square().mean())
    torch.testing.assert_close(model(batch)["action_mae"], off.abs().mean())

    obs = {"state": torch.randn(1, 20)}
    actions = model.predict(obs)  # without the picture that it was made to see
    assert actions.shape == (1, 4)


def test_bc_says_once_that_it_acts_without_pictures(caplog):
    model: Any = ModelRegistry.create("bc", use_image=True, image_size=32)
    caplog.clear()
    for _ in range(2):
        model.predict({"state": torch.randn(1, 20)})
    assert caplog.text.count("acting without pictures") == 1


@pytest.mark.parametrize("loss_type", ["mse", "l1"])
def test_the_loss_of_bc_is_that_of_its_formula(loss_type):
    model: Any = ModelRegistry.create("bc", loss_type=loss_type, dropout=0.0)
    batch = {"observations": {"state": torch.randn(8, 20)}, "actions": torch.randn(8, 4)}
    output = model(batch)
    name = "action_mse" if loss_type == "mse" else "action_mae"
    torch.testing.assert_close(output["loss"], output[name])


def test_every_parameter_of_bc_is_taken():
    model: Any = ModelRegistry.create(
        "bc", state_dim=7, action_dim=3, hidden_dim=64, n_layers=2, use_image=True,
        image_channels=1, image_size=48, image_embed_dim=24, dropout=0.2, loss_type="l1",
    )  # fmt: skip
    config = model.config
    assert (config.fusion.hidden_dim, config.fusion.num_blocks) == (64, 2)
    assert (config.fusion.dropout, config.vision.features) == (0.2, 24)
    assert config.head.loss_type == "l1"
    seen = {"state": torch.randn(2, 7), "image": torch.rand(2, 1, 48, 48)}
    assert model.predict(seen).shape == (2, 3)


def test_bc_is_by_default_as_in_the_table():
    config = BCConfig()
    assert config.vision is None
    assert (config.fusion.hidden_dim, config.fusion.num_blocks) == (256, 3)
    assert (config.fusion.dropout, config.head.loss_type) == (0.1, "mse")
    assert BCConfig(use_image=True).vision.features == 128
    assert ModelRegistry.create("bc").predict({"state": torch.randn(1, 20)}).shape == (1, 4)


# The vision-language-action transformer.


def test_vla_is_used_as_shown():
    model: Any = ModelRegistry.create(
        "vla",
        image_size=128,
        embed_dim=256,
        num_heads=4,
        num_layers=4,
        action_dim=4,
        use_language=True,
        action_horizon=1,
    )
    batch = {
        "observations": {
            "image": torch.randn(4, 3, 128, 128),
            "state": torch.randn(4, 20),
        },
        "actions": torch.randn(4, 4),
        "language": ["pick up the red cube"] * 4,
    }
    output = model(batch)
    assert output["predicted_actions"].shape == (4, 4)
    assert finite(output, "loss", "action_mse")

    obs = {"image": torch.randn(1, 3, 128, 128)}
    model.eval()
    actions = model.predict(obs, language="pick up the red cube")
    assert actions.shape == (1, 4)
    assert not torch.equal(actions, model.predict(obs, language="open the drawer"))


def test_language_and_state_of_a_vla_batch_are_optional():
    model: Any = ModelRegistry.create("vla", image_size=32, embed_dim=32, num_layers=1)
    batch = {"observations": {"image": torch.rand(2, 3, 32, 32)}, "actions": torch.rand(2, 4)}
    assert finite(model(batch), "loss")


def test_vla_predicts_chunks():
    model: Any = ModelRegistry.create("vla", action_horizon=4, action_dim=4)
    seen = {"image": torch.rand(2, 3, 128, 128)}
    assert model({"observations": seen})["predicted_actions"].shape == (2, 4, 4)
    output = model({"observations": seen, "actions": torch.rand(2, 4, 4)})
    assert output["predicted_actions"].shape == (2, 4, 4)
    assert finite(output, "loss")


def test_every_parameter_of_vla_is_taken(caplog):
    model: Any = ModelRegistry.create(
        "vla", image_size=64, patch_size=8, in_channels=1, embed_dim=48, num_heads=3,
        num_layers=6, mlp_ratio=2.0, dropout=0.2, use_language=True, vocab_size=1000,
        max_text_len=16, lang_num_layers=1, action_dim=3, action_head_type="diffusion",
        action_horizon=4, state_dim=5,
    )  # fmt: skip
    config = model.config
    for part in (config.vision, config.language, config.fusion):
        assert (part.embed_dim, part.num_heads, part.mlp_ratio) == (48, 3, 2.0)
    assert (config.vision.patch_size, config.vision.num_layers) == (8, 6)
    assert (config.vision.dropout, config.fusion.dropout) == (0.2, 0.2)
    assert (config.fusion.num_layers, config.language.num_layers) == (3, 1)
    assert (config.language.max_text_len, config.head.type) == (16, "diffusion")
    assert "vocab_size 1000 changes nothing" in caplog.text
    seen = {"state": torch.randn(2, 5), "image": torch.rand(2, 1, 64, 64)}
    assert model.predict(seen, language="go").shape == (2, 4, 3)


def test_vla_is_by_default_as_in_the_table():
    config = VLAConfig()
    for part in (config.vision, config.language, config.fusion):
        assert (part.embed_dim, part.num_heads, part.mlp_ratio) == (256, 4, 4.0)
    assert (config.vision.patch_size, config.vision.num_layers) == (16, 4)
    assert (config.vision.dropout, config.fusion.dropout) == (0.1, 0.1)
    assert (config.fusion.num_layers, config.language.num_layers) == (2, 2)
    assert (config.language.max_text_len, config.head.type, config.chunk_size) == (64, "mlp", 1)
    assert ModelRegistry.create("vla").predict({"image": torch.rand(1, 3, 128, 128)}).shape == (
        1,
        4,
    )


@pytest.mark.parametrize(("layers", "fused"), [(2, 2), (4, 2), (8, 4), (12, 6)])
def test_the_fusion_has_half_as_many_layers_and_at_least_two(layers, fused):
    assert VLAConfig(num_layers=layers).fusion.num_layers == fused


def test_use_language_false_reads_nothing():
    assert VLAConfig(use_language=False, lang_num_layers=2).language is None


def test_words_have_a_vocabulary(caplog):
    with caplog.at_level(logging.WARNING):
        config = VLAConfig(language={"type": "words"}, vocab_size=50, embed_dim=32)
    assert (config.language.vocab_size, config.language.embed_dim) == (50, 32)
    assert caplog.text == ""


# Flat spellings.


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("bc", {"hidden_dim": 8, "fusion": {"hidden_dim": 8}},
         "hidden_dim is another spelling of fusion.hidden_dim: give one of them"),
        ("bc", {"use_image": True, "vision": None}, "use_image is another spelling of vision"),
        ("bc", {"use_image": "yes"}, "use_image is true or false, got 'yes'"),
        ("bc", {"loss_type": "l2"}, "model.head.loss_type: input should be 'huber', 'l1' or 'mse'"),
        ("bc", {"loss_type": "l1", "head": {"type": "diffusion"}},
         "loss_type is a spelling of head.loss_type, which is not there"),
        ("bc", {"hiden_dim": 8}, "unknown key 'model.hiden_dim'"),
        ("vla", {"action_head_type": "difusion"}, "model.head.type.*did you mean 'diffusion'"),
        ("vla", {"embed_dim": 30}, "model.vision: num_heads 4 must divide embed_dim 30"),
        ("vla", {"num_layers": "four"}, "model.vision.num_layers: input should be a valid integer"),
        ("vla", {"patch_size": 24}, "patch_size: expected a divisor of the picture's 128 x 128"),
        ("vla", {"action_horizon": 0}, "model.action_horizon: .*greater than or equal to 1"),
        ("vla", {"action_dim": 0}, "action_dim: expected a whole number, at least 1"),
        ("vla", {"image_channels": 3, "in_channels": 1},
         "argument in_channels: another spelling of image_channels: give one of them"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_parameter_is_said(model, settings, said):
    with pytest.raises(ConfigError, match=said):
        ModelRegistry.create(model, **settings)


def test_a_flat_spelling_keeps_the_rest_of_its_section():
    config = BCConfig.model_validate({"fusion": {"num_blocks": 1}, "hidden_dim": 8})
    assert (config.fusion.hidden_dim, config.fusion.num_blocks) == (8, 1)
    assert BCConfig.model_validate(config.model_dump()) == config


def test_another_type_starts_from_its_own_defaults():
    assert VLAConfig(action_head_type="mlp").head == VLAConfig().head
    assert VLAConfig(action_head_type="diffusion").head.type == "diffusion"


# Sections that say only what is different.


def test_one_key_of_a_section_keeps_the_other_defaults_of_the_policy():
    assert VLAConfig(language={"num_layers": 3}).language.embed_dim == 256
    assert BCConfig(head={"huber_delta": 0.1}).head.loss_type == "mse"
    assert BCConfig(execution={"stall_steps": 0}).execution.replan_every == 1
    assert BCConfig(head={"type": "mlp", "n_layers": 1}).head.loss_type == "mse"


def test_a_head_type_keeps_what_is_given_beside():
    head = VLAConfig(action_head_type="diffusion", head={"hidden_dim": 64}).head
    assert (head.type, head.hidden_dim) == ("diffusion", 64)


def test_a_flat_name_over_null_is_said_to_change_nothing(caplog):
    assert BCConfig(image_embed_dim=24).vision is None
    assert caplog.text.count("image_embed_dim 24 changes nothing: vision is null") == 1


def test_settings_and_a_flat_name_for_one_of_their_keys_are_refused():
    fusion = type(BCConfig().fusion)(hidden_dim=8)
    with pytest.raises(ValueError, match=r"another spelling of fusion\.hidden_dim"):
        BCConfig(fusion=fusion, hidden_dim=16)


def test_two_spellings_of_a_key_are_refused():
    with pytest.raises(ValueError, match="horizon is another spelling of chunk_size"):
        BCConfig(chunk_size=2, horizon=2)


def test_a_misspelt_flat_name_is_answered_with_the_nearest_and_its_argument():
    with pytest.raises(ConfigError, match=r"^argument hiden_dim: .*mean 'hidden_dim'"):
        ModelRegistry.create("bc", hiden_dim=8)


def test_words_alone_are_statistics():
    model: Any = ModelRegistry.create(
        "vla", image_size=32, language={"type": "words"}, statistics={"words": ["go"]}
    )
    assert model.language.words == ["go"]


@pytest.mark.usefixtures("registries")
def test_a_module_that_is_no_policy_is_refused_where_one_is_needed():
    register_model("mine")(nn.Linear)
    with pytest.raises(RegistryError, match="got Linear, which is neither"):
        PolicyConfig.choose({"type": "mine"})


def test_the_public_names_are_there():
    import teamvla.models as public

    assert all(getattr(public, name).__name__ == name for name in ("BCPolicy", "VLAPolicy"))
    assert all(hasattr(public, name) for name in public.__all__)
