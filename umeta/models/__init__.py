"""Feature extractors, one a file: options with `build((C, H, W)) -> nn.Module` from [n, C, H, W] to [n, features]."""
