"""A few of what ``make trust`` does by the hundred: faults that tests must catch, and runs that are
disturbed.
"""

import os
import random

import interrupt
import plant
import pytest

SEED = int(os.environ.get("DEEPATLAS_TRUST_SEED", 54))
FAULTS = plant.read_faults()


def test_there_are_sixty_faults_each_of_its_own_name():
    assert len(FAULTS) == len({fault.name for fault in FAULTS}) == 60


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted_and_its_tests_are_there(fault):
    fault.planted()
    assert all((plant.ROOT / name).is_file() for name in fault.tests)


def test_the_copy_is_the_project_but_for_its_history_and_what_is_made(tmp_path):
    """A folder is left out at the top alone where .gitignore says so: results have runs, too."""
    copy = plant.copy_project(tmp_path)
    there, here = (set((root / "tutorials_data").rglob("*.json")) for root in (copy, plant.ROOT))
    assert {path.relative_to(copy) for path in there} == {
        path.relative_to(plant.ROOT) for path in here
    }
    assert (copy / "README.md").is_file() and (copy / ".github").is_dir()
    assert not any((copy / name).exists() for name in (".git", ".venv", "runs", "site"))


@pytest.mark.timeout(3600)
def test_six_faults_are_caught(tmp_path):
    copy = plant.copy_project(tmp_path)
    to_be_caught = [fault for fault in FAULTS if not fault.survives]
    for fault in plant.drawn(to_be_caught, 6, SEED):
        caught, said = plant.is_caught(fault, copy)
        assert caught, f"{fault.name}: no test of {fault.tests} fails ({said})"


@pytest.mark.timeout(3600)
def test_a_run_that_is_disturbed_ends_as_if_nobody_had(tmp_path):
    wanted, most = interrupt.undisturbed(tmp_path / "undisturbed")
    kinds = interrupt.disturb(tmp_path / "disturbed", random.Random(SEED), wanted, most)
    assert kinds, "nothing struck: another seed"
