"""Where a measurement is from."""

from __future__ import annotations

from datetime import date

from umeta.evaluation.rows import find_commit, name_hardware


def find_origin() -> dict[str, str]:
    """Return the day, the commit and the processor of what is measured now."""
    return {"date": date.today().isoformat(), "commit": str(find_commit()), "hardware": name_hardware()}
