"""Parts of long work are told apart, in names and in randomness."""

from umeta.runtime.loop import RunContext
from umeta.runtime.progress import Progress


def test_parts_have_names_and_seeds_of_their_own():
    whole = RunContext(seed=3, label="x-")
    parts = [whole.part(i) for i in range(4)]
    assert [part.label for part in parts] == ["x-0-", "x-1-", "x-2-", "x-3-"]
    assert len({part.seed for part in [whole, *parts]}) == 5
    assert whole.part(2) == parts[2]


def test_progress_is_silent_unless_asked_for(capsys):
    for enabled in (False, True):
        bar = Progress("work", 1, enabled=enabled)
        bar.update(1, {"loss": 0.5})
        bar.close()
        assert ("loss 0.5" in capsys.readouterr().err) == enabled
