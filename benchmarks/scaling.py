"""Parameters of the vision-language-action policy over the specification's scaling table.

    python benchmarks/scaling.py

Pictures of 128 pixels in patches of 16, an instruction, an action of 4 numbers by the MLP
head, no state; the fusion has half as many layers as the vision encoder, at least two.
Nothing is allocated: the models are made on torch's meta device. The last column has the
words' vocabulary of 1000 in place of the 43 characters.
"""

from __future__ import annotations

import logging

import torch

from teamvla.models.registry import ModelRegistry

#: name -> width, heads, layers, and the parameters that the specification says
TABLE = {
    "Debug": (64, 2, 2, "200K"),
    "Small": (128, 4, 4, "2M"),
    "Medium": (256, 8, 8, "15M"),
    "Large": (512, 16, 12, "80M"),
    "XL": (1024, 16, 24, "350M"),
}


def parameters(width: int, heads: int, layers: int, language: str = "characters") -> int:
    """How many numbers such a policy learns."""
    settings = {"type": language, "embed_dim": width, "num_heads": heads, "mlp_ratio": 4.0,
                "max_text_len": 64}  # fmt: skip
    words = {"vocab_size": 1000} if language == "words" else {}
    with torch.device("meta"):
        policy = ModelRegistry.create(
            "vla",
            image_size=128,
            patch_size=16,
            action_dim=4,
            vision={"type": "vit", "embed_dim": width, "num_heads": heads, "num_layers": layers},
            language={**settings, **words},
            fusion={"type": "transformer", "embed_dim": width, "num_heads": heads,
                    "num_layers": max(2, layers // 2)},
        )  # fmt: skip
    return sum(parameter.numel() for parameter in policy.parameters())


def main() -> None:
    logging.disable(logging.WARNING)  # there are no statistics, nor words
    print(f"{'':8}{'width':>6}{'heads':>6}{'layers':>7}{'says':>7}{'is':>10}{'of it':>8}  words")
    for name, (width, heads, layers, said) in TABLE.items():
        count = parameters(width, heads, layers)
        with_words = parameters(width, heads, layers, "words")
        claim = float(said[:-1]) * (1e3 if said.endswith("K") else 1e6)
        sizes = f"{name:8}{width:6}{heads:6}{layers:7}{said:>7}"
        print(f"{sizes}{count / 1e6:9.2f}M{count / claim:7.2f}x{with_words / 1e6:8.2f}M")


if __name__ == "__main__":
    main()
