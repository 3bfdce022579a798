"""The only module that imports transformers and tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from teamvla.errors import ConfigError, InputError, MissingDependencyError
from teamvla.models.pretrained.hub import find_folder
from teamvla.models.pretrained.settings import PretrainedSettings, are_weights_following

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: what a configuration says of where it came from, or of other uses than ours
_LEFT_OUT = (
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "problem_type",
    "output_attentions", "output_hidden_states", "return_dict", "transformers_version",
    "use_cache",
)  # fmt: skip


def read_architecture(model_name: str, part: str | None = None) -> dict[str, Any]:
    """The configuration of a model as plain data, every value of it written out.

    Args:
        model_name: see :func:`find_folder`.
        part: of a model of several the one that is meant, such as ``vision_config``.

    Raises:
        MissingDependencyError: transformers is not installed.
        InputError: there is no such model.
    """
    transformers = require_transformers()
    folder = find_folder(model_name, weights=False)
    try:
        with _quietly(transformers):
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(str(folder), "the configuration of a model", reason) from None
    if part is not None:
        config = getattr(config, part, config)
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in plain.items() if key not in _LEFT_OUT}


def read_file(model_name: str, name: str) -> dict[str, Any]:
    """A JSON object in the folder of a model; empty if there is none."""
    path = find_folder(model_name, weights=False) / name
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_tokenizer(model_name: str) -> bytes:
    """The tokenizer of a model, as the JSON that :func:`parse_tokenizer` reads.

    The file as its makers wrote it: transformers' AutoTokenizer builds that of some families
    anew and leaves out what the file says of it, and where there is none makes one that knows
    a single token.

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigError: the model's folder has none that can be read.
    """
    path = find_folder(model_name, weights=False) / "tokenizer.json"
    mend = "Save the model's own tokenizer there: AutoTokenizer's save_pretrained writes it."
    try:
        content = path.read_bytes()
    except OSError:
        expected = "a tokenizer beside the model"
        raise ConfigError(str(path), expected, "no such file", mend) from None
    try:
        parse_tokenizer(content)
    except Exception as error:  # tokenizers raises plain ones
        if isinstance(error, MissingDependencyError):
            raise
        raise ConfigError(str(path), "a tokenizer", f"{error}", mend) from None
    return content


def parse_tokenizer(content: bytes) -> Any:
    """The ``tokenizers.Tokenizer`` of :func:`read_tokenizer`'s JSON; it neither cuts nor pads."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise MissingDependencyError.for_extra("tokenizers", "pretrained") from None
    tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def build_model(kind: str, config: PretrainedSettings) -> nn.Module:
    """A model of transformers with its pretrained weights.

    Args:
        kind: name of its class.
        config: complete settings.

    Raises:
        MissingDependencyError: transformers is not installed.
        ConfigError: the architecture is not that of the model, or weights of it are missing.
    """
    transformers = require_transformers()
    wanted = _architecture(transformers, config)
    made, dtype = getattr(transformers, kind), DTYPES[config.dtype]
    common = {"dtype": dtype, "attn_implementation": "sdpa"}
    if are_weights_following():
        from transformers.initialization import no_init_weights

        with no_init_weights():
            empty: nn.Module = made._from_config(wanted, **common)
        return empty.eval()
    _require_same(config)
    folder = find_folder(config.model_name)
    try:
        with _quietly(transformers):
            model, told = made.from_pretrained(
                folder, config=wanted, local_files_only=True, output_loading_info=True, **common
            )
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(str(folder), f"the weights of a {kind}", reason) from None
    if missing := sorted(told["missing_keys"]):
        got = f"no {missing[0]} ({len(missing)} are missing)"
        raise ConfigError(str(folder), f"all weights of a {kind}", got)
    loaded: nn.Module = model.eval()
    return loaded


def require_transformers() -> Any:
    """The library; MissingDependencyError if it is not installed."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise MissingDependencyError.for_extra("transformers", "pretrained") from None
    return transformers


def _architecture(transformers: Any, config: PretrainedSettings) -> Any:
    """The configuration object of complete settings."""
    given = dict(config.architecture or {})
    try:
        return transformers.CONFIG_MAPPING[given.pop("model_type")].from_dict(given)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        where = f"architecture of {config.model_name!r}"
        mend = "Take it out: it is then read from the model's folder."
        raise ConfigError(where, "the configuration of a model", reason, mend) from None


def _require_same(config: PretrainedSettings) -> None:
    """Refuse to fill an architecture with the weights of another."""
    ours, read = config.architecture or {}, config.read_architecture()
    other = [key for key in ours if key in read and ours[key] != read[key]]
    if other:
        raise ConfigError(
            f"architecture of {config.model_name!r}",
            f"{other[0]} {read[other[0]]}, as in its folder", f"{ours[other[0]]}",
            "Take architecture out: it is then read from the model's folder.",
        )  # fmt: skip


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Without bars and reports on stderr: what is wrong is raised."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
