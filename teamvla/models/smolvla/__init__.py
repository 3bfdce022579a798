"""SmolVLA: a small vision-language model whose layers an action expert looks into."""
