"""The two stages without labels: propose and meta-train."""
