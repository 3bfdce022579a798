"""Training a part of a policy: adapters, frozen weights, checkpointed blocks, groups."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL

from teamvla.checkpoint import read_checkpoint, read_header
from teamvla.cli.app import run as run_command
from teamvla.config import Project, Settings
from teamvla.errors import CheckpointError, ConfigError, InputError, MissingDependencyError
from teamvla.models import ModelRegistry, Policy
from teamvla.models.adaptation import Adaptable, AdaptationConfig, frozen_names, has_lora
from teamvla.models.loading import load_policy
from teamvla.train import bc_trainer
from teamvla.train.ema import WeightAverage
from teamvla.train.runs import resume_run, start_run
from teamvla.train.schedulers import OptimizerConfig, make_optimizer
from teamvla.train.tracing import without_weights

STATISTICS = {
    "actions": {"min": [-1.0] * 4, "max": [1.0] * 4},
    "state": {"mean": [0.0] * 3, "std": [1.0] * 3},
}
LORA = {"lora": {"r": 2, "alpha": 4.0}}
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


def make(width: int = 32, **settings: Any) -> Policy:
    """A transformer policy of 16 x 16 pictures."""
    sizes = {"action_dim": 4, "state_dim": 3, "image_size": 16}
    shape = {"patch_size": 8, "embed_dim": width, "num_heads": 2, "num_layers": 2}
    policy = ModelRegistry.create("vla", statistics=STATISTICS, **sizes, **shape, **settings)
    assert isinstance(policy, Policy)
    return policy


def make_batch(rows: int = 5) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (rows, 1, 3, 16, 16), dtype=torch.uint8, generator=random)
    state = torch.randn(rows, 3, generator=random)
    actions = torch.rand(rows, 1, 4, generator=random)
    return {
        "observations": {"image": image, "state": state},
        "actions": actions,
        "language": ["lift the tray", "hold"] * (rows // 2) + ["hold"] * (rows % 2),
    }


def train(policy: Policy, steps: int = 3) -> Policy:
    optimizer = make_optimizer(policy, OptimizerConfig(lr=1e-2))
    policy.train()
    for _ in range(steps):
        policy.loss(make_batch())["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy.eval()


def predicted(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        actions: torch.Tensor = policy.eval().forward(make_batch())["predicted_actions"]
    return actions


def trained_share(policy: Policy) -> float:
    sizes = [(p.numel(), p.requires_grad) for p in policy.parameters()]
    return sum(n for n, trained in sizes if trained) / sum(n for n, _ in sizes)


# Low-rank adapters.


@needs_peft
def test_fresh_adapters_change_nothing_and_trained_ones_do_in_evaluation_mode():
    policy = make()
    before = predicted(policy)
    policy.enable_lora(r=2, alpha=4)
    assert torch.equal(predicted(policy), before)
    assert not torch.allclose(predicted(train(policy)), before, atol=1e-3)


@needs_peft
def test_adapters_reach_every_linear_layer_of_a_block_and_nothing_else_is_trained():
    policy = make(adaptation=LORA)
    adapted = {name.partition(".lora_")[0] for name, p in policy.named_parameters()
               if p.requires_grad}  # fmt: skip
    inside = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
              "mlp.0", "mlp.2")  # fmt: skip
    blocks = [f"vision.blocks.{n}" for n in range(2)] + [f"fusion.blocks.{n}" for n in range(2)]
    blocks += [f"language.blocks.{n}" for n in range(len(policy.language.blocks))]
    assert adapted == {f"{block}.{layer}" for block in blocks for layer in inside}


@needs_peft
def test_adapters_are_a_fiftieth_of_a_large_policy():
    with without_weights():
        policy = make(width=512, adaptation={"lora": {"r": 4}})
    assert trained_share(policy) <= 0.02


@needs_peft
def test_merging_gives_a_plain_policy_that_computes_the_same():
    policy, names = make(adaptation=LORA), set(make().state_dict())
    train(policy)
    before = predicted(policy)
    policy.merge_lora()
    assert (predicted(policy) - before).abs().max() <= 1e-5
    assert set(policy.state_dict()) == names
    assert policy.config.adaptation.lora is None
    assert trained_share(policy) == 1


class InBF16(Adaptable):
    """A linear layer, 8 to 8."""

    class Config(Settings):
        adaptation: AdaptationConfig = AdaptationConfig()

    def __init__(self) -> None:
        super().__init__()
        self.config = self.Config()
        self.layer = torch.nn.Linear(8, 8, dtype=torch.bfloat16)


@needs_peft
def test_adapters_beside_bf16_weights_learn_by_small_steps_and_merge_into_bf16():
    torch.manual_seed(0)
    model, rows = InBF16(), torch.randn(16, 8, dtype=torch.bfloat16)
    model.enable_lora(r=2, alpha=4.0, target=("layer",))
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    before = [adapter.clone() for adapter in adapters]
    optimizer = torch.optim.AdamW(adapters, lr=1e-4)
    for _ in range(6):
        model.layer(rows).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    same = [(new == old).float().mean() for new, old in zip(adapters, before, strict=True)]
    assert max(same) == 0
    answer = model.layer(rows)
    model.merge_lora()
    assert model.layer.weight.dtype == torch.bfloat16
    assert (model.layer(rows) - answer).abs().max() <= answer.abs().max() / 64


@needs_peft
def test_patterns_choose_what_is_adapted_and_what_is_trained_besides():
    lora = {"r": 2, "target": ["fusion.*_proj"], "train": ["heads.*"]}
    policy = make(adaptation={"lora": lora})
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert {name.partition(".")[0] for name in trained} == {"fusion", "heads"}
    assert not any(".mlp." in name for name in trained)


@needs_peft
def test_what_is_frozen_gets_no_adapter():
    policy = make(adaptation={**LORA, "freeze": ["vision.*"]})
    assert not any("lora_" in name for name in policy.vision.state_dict())
    assert any("lora_" in name for name in policy.fusion.state_dict())


@needs_peft
def test_a_second_set_of_adapters_is_refused():
    with pytest.raises(ConfigError, match=r"merge_lora\(\) first"):
        make(adaptation=LORA).enable_lora()


@needs_peft
def test_a_target_that_matches_no_layer_tells_the_nearest():
    with pytest.raises(ConfigError, match=r"'fusoin\.\*', which does not.*'fusion\.\*'"):
        make(adaptation={"lora": {"target": ["fusoin.*"]}})


@needs_peft
def test_a_policy_without_transformer_needs_targets():
    with pytest.raises(ConfigError, match=r"lora\.target: .*fusion\.inputs"):
        ModelRegistry.create("bc", action_dim=4, state_dim=3, adaptation=LORA)


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"teamvla\[pretrained\]"):
        make(adaptation=LORA)


# Freezing.


def test_what_is_frozen_keeps_its_values_and_stays_in_evaluation_mode():
    policy = make(adaptation={"freeze": ["vision.*"]}, dropout=0.5)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    train(policy)
    policy.train()
    assert not any(module.training for module in policy.vision.modules())
    assert policy.fusion.training
    same = {name for name, p in policy.named_parameters() if torch.equal(p, before[name])}
    assert {name for name in before if name.startswith("vision.")} <= same
    assert not any(name.startswith("heads.") for name in same)


def test_a_pattern_that_freezes_nothing_tells_the_nearest():
    with pytest.raises(ConfigError, match=r"'visoin\.\*', which does not.*'vision\.\*'"):
        make(adaptation={"freeze": ["visoin.*"]})


def test_nothing_left_to_train_is_refused():
    policy = make(adaptation={"freeze": ["*"]})
    with pytest.raises(ConfigError, match="expected parameters to train, got none"):
        make_optimizer(policy, OptimizerConfig())


def test_the_average_shares_what_is_frozen():
    policy = make(adaptation={"freeze": ["vision.*"]})
    average = WeightAverage(policy, 0.9)
    train(policy)
    average.update(1)
    ours, theirs = dict(policy.named_parameters()), dict(average.averaged.named_parameters())
    shared = {name for name in ours if ours[name] is theirs[name]}
    assert shared == {*frozen_names(policy)}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# Checkpointed blocks.


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    policy.train().loss(make_batch())["loss"].backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def test_checkpointed_blocks_give_the_same_gradients_with_dropout():
    plain, again = make(dropout=0.2), make(dropout=0.2)
    again.enable_gradient_checkpointing()
    expected, found = gradients(plain), gradients(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_checkpointed_blocks_keep_less_for_the_backward_pass():
    def kept(policy: Policy) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        own = {p.data_ptr() for p in policy.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = policy.train().loss(make_batch())["loss"]
        assert loss.requires_grad
        return sum(size for place, size in sizes.items() if place not in own)

    policy = make()
    before = kept(policy)
    policy.enable_gradient_checkpointing()
    assert kept(policy) < 0.5 * before


def test_a_policy_without_transformer_cannot_be_checkpointed():
    settings = {"adaptation": {"gradient_checkpointing": True}}
    with pytest.raises(ConfigError, match="expected transformer blocks"):
        ModelRegistry.create("bc", action_dim=4, state_dim=3, **settings)


# Groups.


def test_groups_have_their_own_rate_and_decay():
    groups = [{"pattern": "vision.*", "lr_scale": 0.1}, {"pattern": "*.weight", "weight_decay": 0}]
    config = OptimizerConfig(lr=1e-3, weight_decay=0.5, groups=groups)
    policy = make()
    optimizer = make_optimizer(policy, config)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = dict(policy.named_parameters())
    assert of.keys() == {id(p) for p in named.values()}
    seen = {name: (of[id(p)]["lr"], of[id(p)]["weight_decay"]) for name, p in named.items()}
    assert seen["vision.blocks.0.mlp.0.weight"] == (pytest.approx(1e-4), 0.5)
    assert seen["vision.blocks.0.mlp.0.bias"] == (pytest.approx(1e-4), 0.0)
    assert seen["fusion.blocks.0.mlp.0.weight"] == (1e-3, 0.0)
    assert seen["fusion.summary"] == (1e-3, 0.5)


def test_a_group_of_nothing_that_is_trained_is_refused():
    policy = make(adaptation={"freeze": ["vision.*"]})
    with pytest.raises(ConfigError, match=r"optimizer\.groups: .*'vision\.\*'"):
        make_optimizer(policy, OptimizerConfig(groups=[{"pattern": "vision.*"}]))


# Trainings of a part.

TINY = (
    "model.vision.embed_dim=16", "model.vision.num_layers=1", "model.fusion.embed_dim=16",
    "model.fusion.num_layers=1", "model.language.embed_dim=16", "model.language.num_layers=1",
    "model.fusion.dropout=0.1", "trainer.ema_every=1",
)  # fmt: skip
PART = ("model.adaptation.lora.r=2", "model.adaptation.lora.train=[heads.*]",
        "model.adaptation.freeze=[vision.*]", "trainer.save=trained")  # fmt: skip


@pytest.fixture(scope="module")
def project(lift_root: Path) -> Project:
    given = Project.load("model/vla", [*SMALL, *TINY])
    return given.replace("dataset", roots=[str(lift_root)])


@pytest.fixture(scope="module")
def base(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a whole policy."""
    run = bc_trainer.main(project, tmp_path_factory.mktemp("base") / "run")
    return run.checkpoints / "last.ckpt"


@pytest.fixture(scope="module")
def adapted(project: Project, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of adapters."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapted") / "run"
    return bc_trainer.main(project.override(PART), folder, init_checkpoint=base).folder


def test_a_checkpoint_of_what_was_trained_holds_that_alone(adapted, base):
    header, arrays = read_checkpoint(adapted / "checkpoints" / "last.ckpt")
    names = {name for name in arrays if name.startswith(("model.", "ema."))}
    assert not any("base_layer" in name or ".vision." in name for name in names)
    assert any("lora_A" in name for name in names)
    assert any(name.startswith("model.heads.") for name in names)
    assert header.meta["base"]["sha256"] == read_header(base).sha256
    assert not Path(header.meta["base"]["file"]).is_absolute()


def test_inspecting_it_tells_what_was_adapted_and_where_the_rest_is(adapted, base, capsys):
    assert run_command(["ckpt-inspect", str(adapted / "checkpoints" / "last.ckpt")]) == 0
    said = capsys.readouterr().out
    assert "lora r 2, alpha 32; frozen vision.*" in said
    digest = read_header(base).sha256[:12]
    assert f"last.ckpt ({digest}) has what was not trained" in said


def test_loading_it_puts_base_and_adapters_together(adapted, base):
    policy, _ = load_policy(adapted / "checkpoints" / "last.ckpt")  # its probe is exact
    whole, _ = load_policy(base)
    plain = dict(whole.named_parameters())
    assert has_lora(policy)
    for name, tensor in policy.named_parameters():
        if not tensor.requires_grad:
            assert torch.equal(tensor, plain[name.replace(".base_layer.", ".")]), name


def test_another_base_is_refused(adapted, project, tmp_path):
    other = bc_trainer.main(project.with_session(seed=7), tmp_path / "other")
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes((adapted / "checkpoints" / "last.ckpt").read_bytes())
    with pytest.raises(InputError, match=r"its base .*got no such file"):
        load_policy(moved)
    (tmp_path / "last.ckpt").write_bytes((other.checkpoints / "last.ckpt").read_bytes())
    with pytest.raises(CheckpointError, match="got another checkpoint"):
        load_policy(moved)


@pytest.mark.parametrize(("own", "its"), [("moved.ckpt", "last.ckpt"), ("last.ckpt", "base.ckpt")])
def test_a_base_beside_the_checkpoint_is_found_under_any_name(adapted, base, tmp_path, own, its):
    moved = tmp_path / own
    moved.write_bytes((adapted / "checkpoints" / "last.ckpt").read_bytes())
    (tmp_path / "broken.ckpt").write_bytes(b"nothing")
    (tmp_path / its).write_bytes(base.read_bytes())
    assert has_lora(load_policy(moved)[0])


@needs_peft
@pytest.mark.parametrize(("trained", "warned"), [("", True), ("*", False)])
def test_adapters_of_what_has_learned_nothing_yet_are_warned_of(
    project, tmp_path, caplog, trained, warned
):
    train = f"model.adaptation.lora.train=[{trained!r}]" if trained else "trainer.epochs=1"
    start_run(project.override(("model.adaptation.lora.r=2", train)), tmp_path / "run")
    assert ("freezes what has learned nothing yet" in caplog.text) == warned


@needs_peft
def test_a_stopped_training_of_a_part_continues_bit_by_bit(project, base, adapted, tmp_path):
    run = start_run(project.override(PART), tmp_path / "run", base)
    polls: list[int] = []
    assert not bc_trainer.train(run, stop=lambda: bool(polls.append(1)) or len(polls) >= 3)
    assert bc_trainer.train(resume_run(run.folder))
    whole = read_checkpoint(adapted / "checkpoints" / "last.ckpt")[1]
    parts = read_checkpoint(run.checkpoints / "last.ckpt")[1]
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not np.array_equal(whole[name], parts[name])] == []


def test_a_training_can_start_from_merged_adapters(project, adapted, tmp_path):
    checkpoint = adapted / "checkpoints" / "last.ckpt"
    run = start_run(project, tmp_path / "run", checkpoint)
    policy, _ = load_policy(checkpoint)
    policy.merge_lora()
    for name, tensor in run.learner.policy.state_dict().items():
        assert torch.equal(tensor, policy.state_dict()[name]), name


def test_a_training_of_the_same_adapters_goes_on_with_them(project, adapted, tmp_path):
    checkpoint = adapted / "checkpoints" / "last.ckpt"
    run = start_run(project.override([*PART, "trainer.save=all"]), tmp_path / "run", checkpoint)
    policy, _ = load_policy(checkpoint)
    for name, tensor in run.learner.policy.state_dict().items():
        assert torch.equal(tensor, policy.state_dict()[name]), name
    assert load_policy(run.checkpoints / "last.ckpt")[0].training is False


def test_checkpoints_of_a_part_need_one_to_start_from(project, tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.save: .*--init-from"):
        start_run(project.override(PART), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@needs_peft
def test_adapters_that_went_on_in_a_second_training_count_once(project, adapted, tmp_path):
    parent = adapted / "checkpoints" / "last.ckpt"
    run = bc_trainer.main(project.override(PART), tmp_path / "run", init_checkpoint=parent)
    policy, _ = load_policy(run.checkpoints / "last.ckpt")  # its probe is exact
    known = run.learner.best_weights.state_dict()
    assert [n for n, x in policy.state_dict().items() if not torch.equal(x, known[n])] == []


@needs_peft
def test_a_second_training_of_adapters_continues_bit_by_bit(project, adapted, tmp_path):
    run = start_run(project.override(PART), tmp_path / "run", adapted / "checkpoints" / "last.ckpt")
    polls: list[int] = []
    assert not bc_trainer.train(run, stop=lambda: bool(polls.append(1)) or len(polls) >= 3)
    before = {name: x.clone() for name, x in run.learner.policy.state_dict().items()}
    after = resume_run(run.folder).learner.policy.state_dict()
    assert [name for name, x in before.items() if not torch.equal(x, after[name])] == []


@needs_peft
def test_other_adapters_on_adapters_count_those_in_the_weights(project, adapted, tmp_path):
    parent = adapted / "checkpoints" / "last.ckpt"
    other = project.override([*PART, "model.adaptation.lora.r=3"])
    run = bc_trainer.main(other, tmp_path / "run", init_checkpoint=parent)
    policy, _ = load_policy(run.checkpoints / "last.ckpt")
    known = run.learner.best_weights.state_dict()
    assert [n for n, x in policy.state_dict().items() if not torch.equal(x, known[n])] == []
