"""The environment of the benchmarks: the project's own, and the libraries it is compared with.

    python bench/install.py bench/.venv

A library that does not install is named and left out: its rows say that it is missing. scikit-learn and faiss are the
project's own dependencies.
"""

from __future__ import annotations

import site
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

PEERS = ("higher==0.2.1", "torchopt==0.7.3", "stable-baselines3==2.9.2", "lightly>=1.5", "jax>=0.9")
LEARN2LEARN = "learn2learn==0.2.0"
NEEDS = ("requests", "tqdm", "cython", "setuptools")  # of learn2learn's parts that are compared, and to build them


def main(target: Path) -> None:
    venv.create(target, with_pip=True, clear=True)
    python = (target / "bin" / "python").absolute()
    own = Path(subprocess.run([python, "-c", WHERE], capture_output=True, text=True, check=True).stdout.strip())
    inherited = "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
    (own / "project.pth").write_text(inherited)
    for peer in PEERS:
        attempt(peer, [python, "-m", "pip", "install", "--quiet", peer])
    source = target.absolute() / "src"
    fetch = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    if not (
        attempt(LEARN2LEARN, [python, "-m", "pip", "install", "--quiet", *NEEDS])
        and attempt(LEARN2LEARN, [*fetch, "--dest", source, LEARN2LEARN])
    ):
        return
    with tarfile.open(next(source.glob("learn2learn-*.tar.gz"))) as archive:
        archive.extractall(source, filter="data")
    folder = next(path for path in source.glob("learn2learn-*") if path.is_dir())
    # The C in the archive is for an older Python: `build_ext` makes it anew from the Cython beside it.
    if attempt(LEARN2LEARN, [python, "setup.py", "--quiet", "build_ext", "--inplace"], folder):
        (own / "learn2learn.pth").write_text(f"{folder}\n")


WHERE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def attempt(what: str, command: list[str | Path], folder: Path | None = None) -> bool:
    """Whether the command ended well; if not, the end of what it said."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        print(f"{what} does not install and is left out:\n{done.stderr[-2000:]}", file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
