"""Show what representations hold (the paper's Figure 1) -> result.json, figure.png, pictures."""
