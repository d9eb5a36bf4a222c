"""Feature extractors (one file each): options with `build((C, H, W)) -> nn.Module` from [n, C, H, W] to [n, features]."""
