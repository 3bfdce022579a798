"""From the name of a model to the folder that has it.

Every name becomes a folder before anything is read from it: what is there, and what is missing,
is then known at once, while transformers asks an unreachable hub for half a minute.
"""

from __future__ import annotations

from pathlib import Path

from teamvla.errors import InputError

#: short name -> name on the hub
SHORT_NAMES = {
    "siglip-base": "google/siglip-base-patch16-224",
    "siglip-large": "google/siglip-large-patch16-256",
    "siglip-so400m": "google/siglip-so400m-patch14-224",
    "siglip2-base": "google/siglip2-base-patch16-224",
    "siglip2-large": "google/siglip2-large-patch16-256",
    "siglip2-naflex": "google/siglip2-base-patch16-naflex",
    "clip-vit-b": "openai/clip-vit-base-patch16",
    "clip-vit-l": "openai/clip-vit-large-patch14",
    "dinov2-small": "facebook/dinov2-small",
    "dinov2-base": "facebook/dinov2-base",
    "dinov2-large": "facebook/dinov2-large",
    "dinov3-small": "facebook/dinov3-vits16-pretrain-lvd1689m",
    "dinov3-base": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "dinov3-large": "facebook/dinov3-vitl16-pretrain-lvd1689m",
    "qwen2-0.5b": "Qwen/Qwen2-0.5B",
    "qwen2-1.5b": "Qwen/Qwen2-1.5B",
    "qwen2-7b": "Qwen/Qwen2-7B",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "llama3-8b": "meta-llama/Meta-Llama-3-8B",
    "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",
    "gemma3-270m": "google/gemma-3-270m",
    "gemma3-1b": "google/gemma-3-1b-pt",
}
_SETTINGS = ["*.json"]
_WEIGHTS = [["*.safetensors"], ["pytorch_model*.bin"]]
_TIMEOUT_S = 3.0


def find_folder(model_name: str, *, weights: bool = True) -> Path:
    """The folder of a model: one of this machine, or the hub's, downloaded where it must be.

    Args:
        model_name: a folder, one of :data:`SHORT_NAMES`, or ``owner/model`` of the hub.
        weights: whether they are needed too.

    Raises:
        InputError: there is none, or the hub cannot be reached.
    """
    folder = Path(model_name).expanduser()
    if folder.is_dir():
        _require_model(folder, weights)
        return folder
    name = SHORT_NAMES.get(model_name, model_name)
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        mend = f"Short names are {', '.join(SHORT_NAMES)}."
        expected = "a folder, a short name, or owner/model of the hub"
        raise InputError(f"model_name {model_name!r}", expected, "none of them", mend)
    found = _snapshot(name, offline=True)
    if found is None or not _is_complete(found, weights):
        found = _download(name, weights)
    return found


def has_weights(folder: Path) -> bool:
    """Whether weights lie in the folder of a model."""
    return any(any(folder.glob(pattern)) for patterns in _WEIGHTS for pattern in patterns)


def _is_complete(folder: Path, weights: bool) -> bool:
    return (folder / "config.json").is_file() and (has_weights(folder) or not weights)


def _require_model(folder: Path, weights: bool) -> None:
    if not _is_complete(folder, weights):
        expected = "config.json and *.safetensors" if weights else "config.json"
        listed = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder"
        raise InputError(str(folder), f"{expected} of a model, as save_pretrained writes", listed)


def _download(name: str, weights: bool) -> Path:
    _require_hub(name)
    found = _snapshot(name, _SETTINGS)
    for patterns in _WEIGHTS if weights else ():
        if found is None or not has_weights(found):
            found = _snapshot(name, [*_SETTINGS, *patterns])
    if found is None or not _is_complete(found, weights):
        raise InputError(f"model {name!r} of the hub", "config.json and weights", "none there")
    return found


def _snapshot(
    name: str, patterns: list[str] | None = None, *, offline: bool = False
) -> Path | None:
    """The hub's folder of a model with the files that match; offline None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Without subfolders: they hold the same weights for other programs.
        found = snapshot_download(
            name, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=offline
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if offline and isinstance(error, LocalEntryNotFoundError):
            return None
        reason = str(error).strip().partition("\n")[0]
        mend = "Download it where the hub can be reached, and name its folder."
        raise InputError(f"model {name!r}", "it on the hub", reason, mend) from None
    return Path(found)


def _require_hub(name: str) -> None:
    """InputError unless the hub answers: a download would try again and again."""
    from huggingface_hub import constants, get_session

    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else None
    if reason is None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
        except Exception as error:  # of whatever library this version of the hub's speaks through
            reason = f"no answer ({type(error).__name__})"
    if reason is not None:
        expected = f"a folder of this name, or {constants.ENDPOINT} to download it from"
        mend = "Download it where the hub can be reached, and name its folder."
        raise InputError(f"model {name!r}", expected, reason, mend)
