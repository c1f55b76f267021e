"""A little of what ``make trust`` does with thirty: kernels, trainings at once, and a cohort larger
than the memory that a process may have.
"""

import sys

import load
import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Linux alone says this of memory"),
    pytest.mark.timeout(600),
]


def test_two_students_do_the_first_lesson_at_once():
    lesson = load.kernels(2)
    assert lesson.errors == []
    assert len(lesson.each) == 2 and min(lesson.each) > 50, "a kernel that has imported torch"
    assert lesson.all_together == pytest.approx(sum(lesson.each))


def test_what_fails_in_a_kernel_is_told(tmp_path):
    code = ["a = 1", "a / 0", "raise SystemExit"]
    lesson = load.run_class(1, code, tmp_path / "class")
    assert lesson.errors == ["ZeroDivisionError: division by zero"]


def test_more_students_than_fit_are_refused():
    load.check_room(30, 500, 20_000)
    with pytest.raises(load.Refused, match="ask for 34"):
        load.check_room(35, 500, 20_000)


def test_three_trainings_at_once_are_measured_beside_one():
    """How fast they are is no test's business: `make trust` says it, on an idle machine."""
    found = load.trainings(count=3, steps=8, profile="smoke")
    assert found.alone > 0 and found.together > 0 and found.threads >= 1
    assert found.ratio == found.together / found.alone


def test_a_cohort_larger_than_memory_is_drawn_and_one_that_is_kept_passes_the_limit(tmp_path):
    path = load.write_cohort(tmp_path, scans=100, side=64)
    drawn = load.draw_within(64, path, scans=100)
    assert drawn.within and drawn.images == 100
    assert not load.draw_within(64, path, scans=100, keep=True).within
