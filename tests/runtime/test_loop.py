"""Parts of long work are told apart, in names and in randomness."""

from umeta.runtime import progress
from umeta.runtime.loop import RunContext


def test_parts_have_names_and_seeds_of_their_own():
    whole = RunContext(seed=3, label="x-")
    parts = [whole.part(i) for i in range(4)]
    assert [part.label for part in parts] == ["x-0-", "x-1-", "x-2-", "x-3-"]
    assert len({part.seed for part in [whole, *parts]}) == 5
    assert whole.part(2) == parts[2]


def test_progress_is_silent_unless_asked_for(capsys):
    for enabled in (False, True):
        bar = progress.Progress("work", 1, enabled=enabled)
        bar.update(1, {"loss": 0.5})
        bar.close()
        assert ("loss 0.5" in capsys.readouterr().err) == enabled


def test_a_line_says_how_far_it_is_and_how_long_it_takes(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Progress("metatrain", 10, first=2, until=500.0)
    now[0] += 8
    bar.update(4, {"loss": 0.5})  # a line every ten seconds
    assert capsys.readouterr().err == ""
    now[0] += 8
    bar.update(6, {"loss": 0.25, "accuracy": 2 / 3})  # 4 steps in 16 seconds, 4 to come
    assert capsys.readouterr().err == "metatrain  6/10  16s left  loss 0.25  accuracy 0.6667\n"
    now[0] += 4
    bar.update(10)  # the end is always told
    bar.close()
    assert capsys.readouterr().err == "metatrain  10/10  0s left  \n"
    bar = progress.Progress("metatrain", 1000, until=now[0] + 30)  # ends in any case in half a minute
    now[0] += 20
    bar.update(1)
    assert "1/1000  10s left" in capsys.readouterr().err


def test_a_terminal_has_one_line_drawn_anew_five_times_a_second(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    bar = progress.Progress("fit", 1000)
    for i in range(1, 41):
        now[0] += 0.06
        bar.update(i)
    bar.close()
    said = capsys.readouterr().err
    assert said.count("\r\033[Kfit") == 40 // 4  # of every 0.06 s, the fourth is the first after 0.2 s
    assert said.count("\n") == 1


def test_a_loop_counts_the_steps_that_are_done(capsys):
    RunContext(progress=True).loop("fit", 3, lambda i: {"loss": float(i)}, dict, lambda state: None)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fit  3/3  0s left  loss 2" in err


def test_notes_go_where_progress_goes(capsys):
    progress.note("said")
    assert capsys.readouterr() == ("", "said\n")


def test_durations():
    seconds = [0.4, 59.6, 75, 3599, 3725]
    assert [progress.format_duration(n) for n in seconds] == ["0s", "1m00s", "1m15s", "59m59s", "1h02m"]


def test_a_process_alone_copies_its_state_for_checkpoints_and_not_at_each_step(tmp_path):
    saved = []

    def save():
        saved.append(1)
        return {}

    RunContext(folder=tmp_path).loop("fit", 20, lambda i: {"loss": 1.0}, save, lambda state: None)
    assert len(saved) == 1
    RunContext().loop("fit", 20, lambda i: {"loss": 1.0}, save, lambda state: None, skip=True)
    assert len(saved) == 21  # where a step may have to be undone
