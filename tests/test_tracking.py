"""Trackers: what TensorBoard is shown are the rows of the history, each once."""

import math
from dataclasses import replace

from deepatlas import tracking
from deepatlas.checkpoints import write_csv
from deepatlas.errors import UserError
from deepatlas.models import Registration
from deepatlas.networks import RegistrationNet
from deepatlas.regimes import REGIMES
from deepatlas.training import Settings, train

import pandas as pd
import pytest
from helpers import disks, one_thread  # noqa: F401
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REGIME = REGIMES["reg_baseline"]
SETTINGS = Settings({"reg": 6}, validations=2)
RUN = {"seg_baseline": 4, "deepatlas": 7}  # steps of its regimes


def rows(steps, term="similarity"):
    """Rows of a history in which the two networks take turns; a step in three is validated."""
    found = []
    for step in range(1, steps + 1):
        turn = "seg" if step % 2 else "reg"
        row = {"step": step, "turn": turn, "rate": 1e-3, "seconds": 0.5 * step, term: 1 / step}
        if step % 3 == 0:
            row |= {"validation_seg": step / 10, "validation_reg": math.nan}
        found.append(row)
    return found


def shown(folder):
    """{curve: its (step, value, seconds since the first step)} as TensorBoard reads a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    first = min(event.wall_time for of_curve in scalars.values() for event in of_curve)
    return {
        tag: [(event.step, event.value, event.wall_time - first) for event in of_curve]
        for tag, of_curve in scalars.items()
    }


def log(folder, given):
    with tracking.tracked(["tensorboard"], folder, "deepatlas") as watch:
        for row in given:
            watch(row)


def test_a_curve_for_each_number_over_the_steps(tmp_path):
    log(tmp_path, rows(6))
    curves = shown(tmp_path / "tensorboard" / "deepatlas")
    assert set(curves) == {
        "seg/rate",
        "seg/similarity",
        "reg/rate",
        "reg/similarity",
        "validation/seg",  # that of reg is not known
    }
    steps, values, seconds = zip(*curves["reg/similarity"], strict=True)
    assert steps == (2, 4, 6) and values == pytest.approx([1 / 2, 1 / 4, 1 / 6])
    assert seconds == pytest.approx([0.5, 1.5, 2.5], abs=1e-3), "what the training took"
    assert [step for step, *_ in curves["validation/seg"]] == [3, 6]


def test_what_is_gone_on_with_is_there_once(tmp_path):
    """The process that was killed had shown steps that no checkpoint holds."""
    log(tmp_path, rows(7))
    (tmp_path / "tensorboard" / "deepatlas" / "notes.txt").write_text("mine")
    log(tmp_path, rows(9, term="anatomy"))
    curves = shown(tmp_path / "tensorboard" / "deepatlas")
    assert "reg/similarity" not in curves
    assert [step for step, *_ in curves["reg/anatomy"]] == [2, 4, 6, 8]
    assert [step for step, *_ in curves["seg/anatomy"]] == [1, 3, 5, 7, 9]
    assert (tmp_path / "tensorboard" / "deepatlas" / "notes.txt").read_text() == "mine"


class Killed(BaseException):
    """As if the process had ended here."""


def test_a_training_that_was_cut_short_shows_what_its_history_holds(tmp_path):
    def trained(until=None):
        with tracking.tracked(["tensorboard"], tmp_path, "reg_baseline") as watch:

            def watch_until(row):
                watch(row)
                if row["step"] == until:
                    raise Killed

            settings = replace(SETTINGS, watch=watch_until)
            nets = {"reg": Registration(RegistrationNet(2, (8, 8)), velocity=False, passes=1)}
            return train(nets, disks(), REGIME, settings, tmp_path / "reg_baseline")

    with pytest.raises(Killed):
        trained(until=5)  # the last checkpoint is of step 3
    history = trained()
    curves = shown(tmp_path / "tensorboard" / "reg_baseline")
    steps, values, _ = zip(*curves["reg/similarity"], strict=True)
    assert steps == (1, 2, 3, 4, 5, 6)
    assert values == pytest.approx([row["similarity"] for row in history])


def test_a_run_that_was_finished_without_a_tracker_is_shown_to_it_once(tmp_path):
    history = [pd.DataFrame(rows(count)).assign(regime=key) for key, count in RUN.items()]
    write_csv(pd.concat(history), tmp_path / "history.csv")
    tracking.catch_up(["tensorboard"], tmp_path)
    for key, count in RUN.items():
        curves = shown(tmp_path / "tensorboard" / key)
        assert [step for step, *_ in curves["seg/rate"]] == list(range(1, count + 1, 2))
        assert "seg/regime" not in curves and len(curves["validation/seg"]) == count // 3
    before = sorted(tmp_path.rglob("*"))
    tracking.catch_up(["tensorboard"], tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    tracking.catch_up([], tmp_path / "nowhere")


def test_without_trackers_nobody_watches(tmp_path):
    with tracking.tracked([], tmp_path, "deepatlas") as watch:
        assert watch is None
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_there_is_not_is_told(monkeypatch):
    with pytest.raises(UserError, match="no tracker 'tensorbord', did you mean 'tensorboard'"):
        tracking.check(["tensorbord"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package tensorboard is wanted, not installed here"):
        tracking.check(["tensorboard"])
    tracking.check([])
