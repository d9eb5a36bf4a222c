"""Pack Omniglot at 28 pixels for the wheel: `python tests/helpers/pack_omniglot.py DIR`.

DIR holds the published files, as `data.root` does. Writes umeta/data/packed/omniglot.xz and omniglot-characters.txt in
about a minute.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import numpy as np

from umeta.data.omniglot import CHARACTERS, PACKED, Omniglot

# Columns compress 3 % better than rows do. `pb=0`: where a byte stands within four says nothing about it.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]


def pack(root: Path) -> None:
    """Write the packed drawings and the list of their characters."""
    pixels, labels, names, _ = Omniglot(str(root)).read_all()
    if not np.array_equal(labels, np.repeat(np.arange(len(names)), 20)):
        raise SystemExit(f"{root}: expected 20 drawings of each character")
    columns = np.ascontiguousarray(np.asarray(pixels)[:, 0].transpose(0, 2, 1))
    PACKED.write_bytes(lzma.compress(columns.tobytes(), format=lzma.FORMAT_XZ, filters=FILTERS))
    CHARACTERS.write_text("\n".join(names) + "\n", encoding="utf-8")


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
