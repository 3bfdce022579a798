"""Pretrained language models, tiny ones through the real path."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained_models import LLMS, WIDTH, save_llm, save_model, save_tokenizer, save_vision

from teamvla.errors import ConfigError
from teamvla.models.features import Tokens
from teamvla.models.pretrained import LLMBackbone, LLMConfig, weights_follow

transformers = pytest.importorskip("transformers")
every_llm = pytest.mark.parametrize("name", LLMS)
TEXTS = ["lift the red cube", "hold"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("llm")
    return {name: save_llm(name, root / name) for name in LLMS}


def seen(rows: int = 2, count: int = 10, seed: int = 0) -> torch.Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(rows, count, WIDTH, generator=dice)


def causal_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@every_llm
def test_words_alone_get_the_states_that_transformers_gives(name, folders):
    llm = LLMBackbone(model_name=str(folders[name])).eval()
    tokens = llm.tokenize(TEXTS[:1])
    assert tokens["input_ids"].tolist() == [[2, 3, 8, 7]]
    theirs = causal_model(folders[name]).model(**tokens).last_hidden_state
    ours = llm(tokens["input_ids"], tokens["attention_mask"])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@every_llm
def test_pictures_before_the_words_as_transformers_would_take_them(name, folders):
    """Longer than the windows of attention, so that these count too."""
    llm = LLMBackbone(model_name=str(folders[name])).eval()
    tokens, pictures = llm.tokenize(TEXTS[:1]), seen(1, 12)
    model = causal_model(folders[name])
    words = model.get_input_embeddings()(tokens["input_ids"])
    both = torch.cat([pictures, words], dim=1)
    theirs = model.model(inputs_embeds=both).last_hidden_state
    ours = llm(tokens["input_ids"], tokens["attention_mask"], pictures)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_words_of_gemma_have_their_own_scale(folders):
    llm = LLMBackbone(model_name=str(folders["gemma3"]))
    looked_up = llm.model.embed_tokens.weight[[2, 3]]
    embedded = llm.embed(["lift the"]).values[0]
    torch.testing.assert_close(embedded, looked_up * WIDTH**0.5)


@every_llm
@pytest.mark.parametrize("attention", ["causal", "prefix"])
def test_padding_has_no_influence_wherever_it_stands(name, attention, folders):
    llm = LLMBackbone(model_name=str(folders[name]), attention=attention).eval()
    values, mask = seen(), torch.ones(2, 10, dtype=torch.bool)
    mask[1, [3, 4, 7]] = False
    states = llm.attend(Tokens(values, mask), prefix=9)
    values[1, [3, 4, 7]] = 50.0
    other = llm.attend(Tokens(values, mask), prefix=9)
    assert torch.equal(states[mask], other[mask])
    alone = llm.attend(Tokens.full(values[1:, mask[1]]), prefix=6)
    torch.testing.assert_close(states[1][mask[1]], alone[0], rtol=0, atol=1e-5)


def influence(llm: LLMBackbone, prefix: int | None) -> torch.Tensor:
    """bool [N,N]: whether the state of a token depends on another token."""
    values = seen(1, 5)
    states = llm.attend(Tokens.full(values), prefix)
    rows = []
    for place in range(5):
        changed = values.clone()
        changed[:, place, 0] += 1
        differs = (llm.attend(Tokens.full(changed), prefix) - states).abs().amax(-1)[0]
        rows.append(differs > 1e-6)
    return torch.stack(rows, dim=1)


@every_llm
def test_causal_tokens_look_back_and_a_prefix_looks_both_ways(name, folders):
    causal = LLMBackbone(model_name=str(folders[name])).eval()
    before = torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.equal(influence(causal, 3), before)
    both = LLMBackbone(model_name=str(folders[name]), attention="prefix").eval()
    expected = before | (torch.arange(5) < 3)
    assert torch.equal(influence(both, 3), expected)
    assert influence(both, None).all()


@every_llm
def test_tuned_weights_get_finite_gradients_and_frozen_ones_pass_them_on(name, folders):
    for freeze in (False, True):
        llm = LLMBackbone(model_name=str(folders[name]), freeze=freeze).train()
        assert llm.model.training != freeze
        values = seen().requires_grad_()
        words = llm.embed(TEXTS)
        joint = Tokens(torch.cat([values, words.values], 1), torch.ones(2, 14, dtype=torch.bool))
        llm.attend(joint).square().sum().backward()
        assert values.grad is not None
        assert values.grad.abs().sum() > 0
        grads = [parameter.grad for parameter in llm.parameters()]
        assert all((grad is None) == freeze for grad in grads)
        assert freeze or all(grad.isfinite().all() for grad in grads)


@every_llm
def test_it_is_built_again_without_its_folder(name, tmp_path):
    folder = save_llm(name, tmp_path / "model")
    llm = LLMBackbone(model_name=str(folder)).eval()
    settings = json.loads(llm.config.model_dump_json())
    shutil.rmtree(folder)
    with weights_follow():
        other = LLMBackbone(LLMConfig.model_validate(settings)).eval()
    for parameter in other.parameters():
        parameter.data.fill_(float("nan"))
    other.load_state_dict(llm.state_dict())
    assert other.vocabulary.rows(TEXTS) == [[2, 3, 8, 7], [5]]
    assert torch.equal(other.attend(other.embed(TEXTS)), llm.attend(llm.embed(TEXTS)))


def test_bf16_weights_give_float32_states_near_the_exact_ones(folders):
    exact = LLMBackbone(model_name=str(folders["qwen2"])).eval()
    rough = LLMBackbone(model_name=str(folders["qwen2"]), dtype="bf16").eval()
    assert {parameter.dtype for parameter in rough.parameters()} == {torch.bfloat16}
    states = rough.attend(Tokens.full(seen()))
    assert states.dtype == torch.float32
    assert (states - exact.attend(Tokens.full(seen()))).abs().mean() < 0.05


# Words.


def test_what_the_model_has_around_its_words_is_there(tmp_path):
    llm = LLMBackbone(model_name=str(save_llm("llama3", tmp_path, begin="<s>")))
    assert llm.vocabulary.rows(["hold", "", "nonsense"]) == [[1, 5], [1], [1, 0]]


def test_a_text_that_is_too_long_is_cut_with_one_warning(folders, caplog):
    llm = LLMBackbone(model_name=str(folders["qwen2"]), max_text_len=3)
    for _ in range(2):
        assert llm.vocabulary.rows(TEXTS) == [[2, 3, 8], [5]]
    assert caplog.text.count("one of 4 that begins with 'lift the red cube' is cut") == 1


def test_no_words_at_all_leave_the_rest(folders):
    llm = LLMBackbone(model_name=str(folders["qwen2"])).eval()
    words = llm.embed(["", ""])
    assert words.values.shape == (2, 0, WIDTH)
    ids = torch.zeros(2, 0, dtype=torch.int64)
    assert torch.equal(llm(ids, words.mask, seen()), llm.attend(Tokens.full(seen())))


def test_averaged_copies_keep_the_words(folders):
    llm = LLMBackbone(model_name=str(folders["qwen2"]))
    llm.vocabulary.rows(TEXTS)
    assert copy.deepcopy(llm).vocabulary.rows(TEXTS) == llm.vocabulary.rows(TEXTS)


# What is wrong is said.


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (save_llm("qwen2", tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer.json: expected a tokenizer beside the model"):
        LLMBackbone(model_name=str(tmp_path))


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path):
    kind, settings, values = LLMS["qwen2"]
    save_tokenizer(save_model(kind, settings, {**values, "vocab_size": 8}, tmp_path))
    with pytest.raises(ConfigError, match="expected 2 to 8 tokens, as the model has, got 9"):
        LLMBackbone(model_name=str(tmp_path))


def test_an_encoder_of_pictures_is_no_language_model(tmp_path):
    with pytest.raises(ConfigError, match=r"model of the families qwen2, .*, got dinov2"):
        LLMBackbone(model_name=str(save_vision("dinov2", tmp_path)))
