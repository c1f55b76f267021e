"""The data sets that the kit knows, on generated folders in exactly the layout of each."""

from deepatlas import datasets
from deepatlas.datasets import entries
from deepatlas.errors import UserError

import pytest
import torch
from named_sets import (
    SHAPE,
    write_decathlon,
    write_mindboggle,
    write_neurite_oasis,
    write_neurite_oasis_2d,
    write_oai_zib,
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_DATA", str(tmp_path))
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def people(cohort):
    return {scan.subject for scan in cohort.scans}


@pytest.mark.parametrize("name", list(datasets.manifest()))
def test_every_set_says_whose_it_is_and_what_may_be_done_with_it(name):
    entry = datasets.describe(name)
    assert entry.title and entry.licence
    assert entry.credit or entry.anatomy, "whoever uses scans cites who made them"
    if entry.url is not None:
        assert entry.checksum, "a download is checked"


@pytest.mark.parametrize(
    ("name", "prefix", "numbers", "structures"),
    [
        ("spleen", "spleen", [1], ["spleen"]),
        ("heart", "la", [1], ["left atrium"]),
        ("prostate", "prostate", [1, 2], ["peripheral zone", "transition zone"]),
    ],
)
def test_sets_of_the_decathlon(home, name, prefix, numbers, structures):
    write_decathlon(home / name, prefix, numbers, volumes=2 if name == "prostate" else 1)
    cohort = datasets.load_cohort(name, profile="smoke")
    assert [*cohort.structures[1:]] == structures
    assert len(people(cohort)) == 9 and all(len(person) == 2 for person in people(cohort))
    assert all(set(scan.labels.unique().tolist()) == {0, *numbers} for scan in cohort.scans)


def test_the_prostates_first_contrast_is_taken(home, tmp_path):
    """The files hold T2 and ADC; a data set that takes the other has other images."""
    write_decathlon(home / "prostate", "prostate", [1, 2], volumes=2)
    entry = datasets.describe("prostate")
    first = datasets.load_cohort(entry, profile="smoke").train[0]
    second_entry = entry.model_copy(update={"channel": 1})
    second = datasets.load_cohort(second_entry, profile="smoke").train[0]
    assert (first.image - second.image).abs().max() > 0.05
    assert first.source.shape == SHAPE
    with pytest.raises(UserError, match=r"volume 2, counted from 0.*take another channel"):
        datasets.load_cohort(entry.model_copy(update={"channel": 2}), profile="smoke")
    with pytest.raises(UserError, match="name one of them as the channel"):
        datasets.load_cohort(entry.model_copy(update={"channel": None}), profile="smoke")


def test_neurite_oasis_in_3d(home):
    write_neurite_oasis(home / "neurite-oasis")
    cohort = datasets.load_cohort("neurite-oasis", profile="smoke")
    assert len(cohort.structures) == 36 and cohort.structures[14] == "left hippocampus"
    assert cohort.structures[30] == "right hippocampus"
    assert people(cohort) == {f"{i:04d}" for i in range(9)}


@pytest.mark.parametrize("thin", [0, 1, 2])
def test_neurite_oasis_in_2d(home, thin):
    """Whichever way the header says that the slices lie."""
    write_neurite_oasis_2d(home / "neurite-oasis-2d", thin=thin)
    cohort = datasets.load_cohort("neurite-oasis-2d", profile="smoke")
    assert cohort.shape == (40, 48)
    assert cohort.structures[1:] == (
        "cortex",
        "subcortical grey matter",
        "white matter",
        "cerebrospinal fluid",
    )
    assert all(len(scan.labels.unique()) == 5 for scan in cohort.scans)


def test_mindboggle_has_the_papers_groups(home):
    """65 to train, of which N = 21 are one site, as in the paper; 31 regions, both sides merged."""
    write_mindboggle(home / "mindboggle101")
    entry = datasets.describe("mindboggle101").model_copy(update={"align": False})
    cohort = datasets.load_cohort(entry, profile="smoke")
    assert [len(part) for part in (cohort.train, cohort.validation, cohort.test)] == [65, 8, 21]
    sites = [scan.id.rpartition("-")[0] for scan in cohort.train]
    found = {site: sites.count(site) for site in set(sites)}
    assert found == {"MMRR-21": 21, "HLN-12": 12, "NKI-TRT-20": 12, "OASIS-TRT-20": 20}
    assert {scan.id.rpartition("-")[0] for scan in cohort.test} == {"NKI-RS-22"}
    assert len(cohort.structures) == 32 and cohort.label_numbers[0] == (1002, 2002)
    for keep in (1, 21):
        for seed in range(3):
            labelled = cohort.hide_labels(keep, seed).labelled
            assert all(scan.id.startswith("MMRR-21-") for scan in labelled)
    assert len(cohort.hide_labels(65).labelled) == 65


@pytest.mark.parametrize("channel", ["_0000", ""])
def test_oai_zib_knees(home, monkeypatch, channel):
    """As OAIZIB-CM lays them out, without a dataset.json; both halves of the tibial cartilage."""
    write_oai_zib(home / "oai-zib", channel)
    cohort = datasets.load_cohort("oai-zib", profile="smoke")
    assert cohort.structures[1:] == ("femur", "femoral cartilage", "tibia", "tibial cartilage")
    assert cohort.label_numbers == ((1,), (2,), (3,), (4, 5))
    assert len(people(cohort)) == 9
    assert isinstance(cohort.reference, torch.Tensor), "knees are aligned"


def test_the_papers_two_are_supplied_by_the_user():
    for name in ("mindboggle101", "oai-zib"):
        entry = datasets.describe(name)
        assert entry.url is None
        with pytest.raises(FileNotFoundError, match="set DEEPATLAS_DATA to the folder"):
            datasets.find(entry)


def test_a_channel_is_a_number_from_0():
    said = entries.manifest()["prostate"].model_dump() | {"channel": -1}
    with pytest.raises(ValueError, match="channel"):
        entries.Entry(**said)
