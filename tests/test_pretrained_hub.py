"""Where pretrained models come from: folders, the hub, and what is said if there is neither."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from teamvla.errors import InputError, MissingDependencyError
from teamvla.models.pretrained import LLMConfig


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without any model of the hub, and what is asked of it; never of the network."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    names: list[str] = []

    def snapshot_download(name: str, *, local_files_only: bool, **_: Any) -> str:
        names.append(name)
        assert local_files_only
        raise LocalEntryNotFoundError("nothing of it is here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return names


@pytest.mark.parametrize("name", ["qwen2-0.5b", "Qwen/Qwen2-0.5B"])
def test_a_model_that_is_nowhere_is_one_clear_error(name, asked):
    with pytest.raises(InputError, match=r"model 'Qwen/Qwen2-0.5B': .* HF_HUB_OFFLINE is set"):
        LLMConfig(model_name=name).completed()
    assert asked == ["Qwen/Qwen2-0.5B"]


def test_a_hub_that_does_not_answer_is_asked_once(asked, monkeypatch):
    import huggingface_hub

    class Session:
        calls = 0

        def head(self, *_: Any, **__: Any) -> None:
            Session.calls += 1
            raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    with pytest.raises(InputError, match=r"to download it from, got no answer \(ConnectionError\)"):
        LLMConfig().completed()
    assert Session.calls == 1


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "qwen2_0.5b", "a/b/c"])
def test_a_name_that_can_be_no_model_is_refused_at_once(name, asked):
    with pytest.raises(InputError, match=r"a folder, a short name, or owner/model of the hub"):
        LLMConfig(model_name=name).completed()
    assert asked == []


# Without the extra.


@pytest.mark.parametrize(
    "code",
    [
        "from teamvla.models.pretrained import LLMBackbone; LLMBackbone(model_name='.')",
        "from teamvla.models.pretrained import VisionEncoder; VisionEncoder(model_name='.')",
        "import teamvla.models as m; m.ModelRegistry.create('vla_model', action_dim=4)",
    ],
)
def test_without_the_extra_its_name_is_said(code, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'teamvla\[pretrained\]'"):
        exec(code, {})


def test_without_the_extra_everything_else_works():
    code = (
        "import sys; sys.modules['transformers'] = sys.modules['tokenizers'] = None\n"
        "import torch; from teamvla.models import ModelRegistry, MODELS, ENCODER_REGISTRY\n"
        "[registry.get(name) for registry in (MODELS, ENCODER_REGISTRY) for name in registry]\n"
        "model = ModelRegistry.create('single_brain', action_dim=4, state_dim=3, image_size=32)\n"
        "seen = {'state': torch.zeros(1, 3), 'image': torch.zeros(1, 3, 32, 32)}\n"
        "assert model.predict(seen, 'lift').shape == (1, 16, 4)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
