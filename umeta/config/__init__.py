"""Configurations: parts by name, files and overrides, and what each domain's run needs."""
