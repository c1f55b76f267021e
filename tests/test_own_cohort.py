"""Own scans: a cohort file is read, and taken wherever the name of a data set goes."""

import re
from pathlib import Path

from deepatlas import (
    checkpoints,
    experiments,
    lessons,
    models,
    parameters,
    places,
    records,
    reporting,
    site,
    sweeps,
    training,
)
from deepatlas.cli import app
from deepatlas.datasets import describe, load_cohort, read_entries
from deepatlas.datasets.entries import read_cohort
from deepatlas.errors import UserError
from deepatlas.parameters import parse

import pytest
import torch
from folders import write_case
from typer.testing import CliRunner

HEAD = {
    "name": '"mice"',
    "title": '"Mice of our own"',
    "licence": '"CC0"',
    "structures": '[["lower", [1]], ["upper", [2]]]',
    "grids.full-3d": "{ shape = [16, 16, 16], spacing = 1.0 }",
}


def scan(name, part="train", labelled=True, **changed):
    """The keys of one scan as TOML writes them; None leaves a key out."""
    values = {
        "id": f'"{name}"',
        "subject": f'"{name}"',
        "image": f'"images/{name}.nii.gz"',
        "labels": f'"labels/{name}.nii.gz"' if labelled else None,
        "part": f'"{part}"' if part else None,
    }
    return {key: value for key, value in (values | changed).items() if value is not None}


def write(folder, tables, **changed):
    """A cohort file with the head ``HEAD`` and these tables of scans."""
    head = {key.replace("__", "."): value for key, value in changed.items()}
    lines = [f"{key} = {value}" for key, value in (HEAD | head).items() if value is not None]
    for table in tables:
        lines += ["", "[[scans]]", *(f"{key} = {value}" for key, value in table.items())]
    path = folder / "cohort.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


SCANS = [scan("a"), scan("b", labelled=False), scan("c", "validation"), scan("d", "test")]


def refused(folder, tables=SCANS, **changed):
    """The sentence with which such a file is refused, without the name of the file."""
    path = write(folder, tables, **changed)
    with pytest.raises(UserError) as caught:
        read_cohort(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and said.isprintable() and len(said) < 1000
    return said.removeprefix(f"{path}: ")


# --- the file -------------------------------------------------------------------------------------


def test_a_cohort_file_lists_its_scans_one_by_one(tmp_path):
    entry = read_cohort(write(tmp_path, SCANS))
    assert (entry.name, entry.title, entry.layout) == ("mice", "Mice of our own", "cohort")
    assert entry.home == tmp_path and "home" not in entry.model_dump()
    assert [scan.id for scan in entry.scans] == list("abcd")
    assert entry.scans[1].labels is None
    assert entry.split_sizes("class") == [2, 1, 1]
    assert entry.labelled_at_most("full") == 1


def test_what_may_be_left_out_has_a_default(tmp_path):
    entry = read_cohort(write(tmp_path, [scan("a", subject=None)], title=None, licence=None))
    assert (entry.title, entry.licence) == ("mice", "unknown")
    assert entry.scans[0].subject == "a"


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"name": None}, "name is missing"),
        ({"name": '"../up"'}, "name: letters, digits, '_', '-' and '.' were wanted"),
        ({"structures": None}, "one of anatomy .* says what is in it, got none"),
        ({"structures": None, "anatomy": '"brain"'}, "there is no key 'anatomy'"),
        ({"structurs": "3"}, "there is no key 'structurs', did you mean 'structures'"),
        ({"split": "[2, 1, 1]"}, "there is no key 'split': choose from name, title"),
        ({"layout": '"bids"'}, "there is no key 'layout'"),
        ({"home": '"/etc"'}, "there is no key 'home'"),
        ({"grids__full-3d": None}, "grids is missing"),
        (
            {"grids__full-3d": "{ shape = [20, 16, 16], spacing = 1.0 }"},
            "grids: every side must be divisible by 8",
        ),
        (
            {"grids__full-3d": None, "grids__full-2d": "{ shape = [16, 16], spacing = 1.0 }"},
            "grids: full-3d was wanted, got full-2d",
        ),
        (
            {
                "dims": "2",
                "grids__full-3d": None,
                "grids__class-2d": "{ shape = [16, 16], spacing = 1.0 }",
            },
            "grids: full-3d or, for slices, full-2d was wanted, got class-2d",
        ),
        ({"title": '""'}, "title: some text was wanted, got ''"),
    ],
)
def test_a_mistake_in_the_head_is_one_sentence(tmp_path, changed, said):
    found = refused(tmp_path, **changed)
    assert re.match(said, found), found


@pytest.mark.parametrize(
    "scans, said",
    [
        ([], "a table [[scans]] for each scan was wanted, got []"),
        ([scan("a", image=None)], "scan 'a': image is missing"),
        ([scan("a", id=None)], "[[scans]] number 1: id is missing"),
        ([scan("a", id="3")], "[[scans]] number 1: id: text was wanted, got 3"),
        ([scan("a", None)], "scan 'a': part is missing"),
        (
            [scan("a", "tests")],
            "scan 'a': part: input should be 'train', 'validation' or 'test', got 'tests'",
        ),
        ([scan("a", label='"x"')], "scan 'a': there is no key 'label', did you mean 'labels'"),
        ([scan("a", image='""')], "scan 'a': image: some text was wanted, got ''"),
        ([scan("a", image=r'"a\u001b[2J"')], "scan 'a': image: text without line breaks and"),
        ([scan("a", labels=r'"a\nb"')], "scan 'a': labels: text without line breaks and"),
        (
            [scan("a", labels='"images/a.nii.gz"')],
            "scan 'a': 'images/a.nii.gz' is an image and its own labels",
        ),
        ([scan("a"), scan("a")], "the scan 'a' is there twice: give each an id of its own"),
        (
            [scan("a"), scan("b", image='"images/a.nii.gz"')],
            "the scans 'a' and 'b' have the same image, 'images/a.nii.gz': list it once",
        ),
        (
            [scan("a"), scan("b", "test", subject='"a"')],
            "one person, 'a', is in two parts: scan 'a' in train and scan 'b' in test: put all",
        ),
        ([scan("a", "test")], 'no scan is there to train on: say part = "train" of some'),
        (
            [scan("a", labelled=False), scan("b", labelled=False), scan("c", "test")],
            "none of its 2 training scans has labels: one at least was wanted",
        ),
    ],
)
def test_a_mistake_in_a_scan_is_one_sentence_that_names_it(tmp_path, scans, said):
    found = refused(tmp_path, scans)
    assert found.startswith(said), found


@pytest.mark.parametrize("scans", ["3", "[3]"])
def test_scans_that_are_no_tables_are_refused(tmp_path, scans):
    said = "a table [[scans]] for each scan was wanted, got 3"
    assert refused(tmp_path, [], scans=scans) == said


def test_the_table_of_named_sets_takes_no_scans(tmp_path):
    path = tmp_path / "datasets.toml"
    path.write_text('[mice]\ntitle = "x"\nlicence = "x"\nscans = []\n')
    with pytest.raises(UserError, match=r"datasets.toml: mice: there is no key 'scans'"):
        read_entries(path)


def test_smoke_takes_a_few_scans_and_the_labelled_ones_first(tmp_path):
    scans = [scan(f"u{i}", labelled=False) for i in range(3)]
    scans += [scan(f"l{i}") for i in range(3)]
    scans += [scan(f"v{i}", "validation") for i in range(5)]
    scans += [scan(f"t{i}", "test") for i in range(9)]
    entry = read_cohort(write(tmp_path, scans))
    assert entry.split_sizes("smoke") == [4, 2, 3]
    assert [scan.id for scan in entry.scans_of("smoke", "train")] == ["l0", "l1", "l2", "u0"]
    assert entry.labelled_at_most("smoke") == 3
    more = read_cohort(write(tmp_path, [scan("l3"), *scans]))
    some = [scan.id for scan in more.scans_of("smoke", "train")]
    assert some == ["l3", "l0", "l1", "u0"], "one is without labels, as in the whole training"
    assert entry.split_sizes("class") == entry.split_sizes("full") == [6, 5, 9]


def test_grids_are_made_from_the_one_that_is_said(tmp_path):
    grid = "{ shape = [160, 192, 96], spacing = 0.5 }"
    entry = read_cohort(write(tmp_path, SCANS, **{"grids.full-3d": grid}))
    assert entry.grid("full", 3) == ((160, 192, 96), 0.5)
    assert entry.grid("class", 3) == ((80, 96, 48), 1.0)
    assert entry.grid("smoke", 3) == ((24, 24, 16), 4.0)
    assert entry.grid("class", 2) == ((80, 96), 1.0)


def test_a_cohort_of_slices_has_grids_of_slices_alone(tmp_path):
    grid = {"grids.full-3d": None, "grids.full-2d": "{ shape = [160, 192], spacing = 1.0 }"}
    entry = read_cohort(write(tmp_path, SCANS, dims="2", **grid))
    assert entry.grid("full", 2) == ((160, 192), 1.0)
    assert entry.grid("class", 2) == ((80, 96), 2.0)
    assert entry.grid("smoke", 2) == ((24, 24), 8.0)
    with pytest.raises(UserError, match=r"no full-3d .* as its scans are slices"):
        entry.grid("class", 3)


def test_where_the_files_are_is_no_part_of_what_a_cohort_is(tmp_path):
    here = read_cohort(write(tmp_path, SCANS))
    moved = [scan("a", image='"/else/a.nii.gz"', labels='"/else/a_labels.nii.gz"'), *SCANS[1:]]
    (tmp_path / "there").mkdir()
    there = read_cohort(write(tmp_path / "there", moved))
    assert here.identity() == there.identity()
    hidden = read_cohort(write(tmp_path, [SCANS[0], scan("b"), *SCANS[2:]]))
    assert hidden.identity() != here.identity()


# --- wherever a name goes -------------------------------------------------------------------------


def test_a_file_and_its_folder_are_described_as_a_name_is(tmp_path, monkeypatch):
    entry = read_cohort(write(tmp_path, SCANS))
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    relative = Path(tmp_path.name)
    for name in (tmp_path / "cohort.toml", tmp_path, relative, "~" / relative / "cohort.toml"):
        assert describe(str(name)) == entry


def test_a_folder_without_a_cohort_file_is_told_to_be_checked_first(tmp_path):
    with pytest.raises(UserError) as caught:
        describe(str(tmp_path))
    assert f"run `deepatlas data check {tmp_path}` first: it writes the cohort.toml" in str(
        caught.value
    )


def test_what_is_neither_a_name_nor_a_path_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mice.toml: no such file; a cohort file was"):
        describe(str(tmp_path / "mice.toml"))
    with pytest.raises(UserError, match="there is no cohort 'hipocampus', did you mean 'hippoc"):
        describe("hipocampus")
    with pytest.raises(UserError, match="no path of a cohort file"):
        describe("~nobody-of-this-name/cohort.toml")
    with pytest.raises(UserError, match=r"there is no cohort|no path of a cohort file"):
        describe("x" * 5000)


def test_the_path_is_kept_absolute_and_the_run_is_named_by_what_the_cohort_is(
    tmp_path, monkeypatch
):
    write(tmp_path, SCANS)
    monkeypatch.chdir(tmp_path)
    found = [parse({"dataset": name}) for name in ("cohort.toml", ".", str(tmp_path))]
    assert {experiment.dataset for experiment in found} == {str(tmp_path / "cohort.toml")}
    (tmp_path / "there").mkdir()
    moved = parse({"dataset": str(write(tmp_path / "there", SCANS))})
    assert moved.name == found[0].name and moved.name.startswith("mice-class-3d-N1-seed0-")
    other = parse({"dataset": str(write(tmp_path / "there", SCANS[:-1]))})
    assert other.name != moved.name


def test_a_notebook_finds_a_cohort_file_beside_it(tmp_path, monkeypatch):
    write(tmp_path, SCANS)
    monkeypatch.chdir(tmp_path)
    experiment = parameters.from_notebook({"dataset": "cohort.toml"})
    assert experiment.dataset == str(tmp_path / "cohort.toml")


def test_all_labelled_training_scans_are_taken_unless_fewer_are_asked_for(tmp_path):
    scans = [scan(f"l{i}") for i in range(3)] + [scan("u", labelled=False)]
    path = str(write(tmp_path, scans))
    assert parse({"dataset": path}).labelled == 3
    assert parse({"dataset": path, "labelled": 2}).labelled == 2
    assert parse({"dataset": "phantom-brain"}).labelled == 1
    said = "labelled must be at most 3, the training scans with labels of mice in profile class"
    with pytest.raises(UserError, match=said):
        parse({"dataset": path, "labelled": 4})


def test_full_supervision_is_left_out_where_it_would_repeat_the_baseline(tmp_path):
    path = str(write(tmp_path, [scan("a"), scan("b"), scan("c", labelled=False)]))
    of_all = parse({"dataset": path}).table
    assert "seg_full" not in of_all and "reg_full" not in of_all and "deepatlas" in of_all
    assert "seg_full" in parse({"dataset": path, "labelled": 1}).table
    assert "seg_full" in parse({"profile": "smoke", "labelled": 4}).table  # as published


# --- runs -----------------------------------------------------------------------------------------


def make(folder, parts, grid="{ shape = [16, 16, 16], spacing = 1.0 }"):
    """A cohort file with its files, a letter of ``parts`` a scan: l labelled and u unlabelled ones
    for training, v for validation, t for test, T an unlabelled one, o those of one person.
    """
    tables = []
    for number, part in enumerate(parts):
        id = f"{part}{number}"
        write_case(folder, id, number)
        tables.append(
            scan(
                id,
                {"l": "train", "u": "train", "v": "validation"}.get(part, "test"),
                labelled=part not in "uT",
                image=f'"imagesTr/{id}.nii.gz"',
                subject='"one"' if part == "o" else None,
                **({} if part in "uT" else {"labels": f'"labelsTr/{id}.nii.gz"'}),
            )
        )
    return write(folder, tables, **{"grids.full-3d": grid})


def smoke(path, **values):
    return parse({"dataset": str(path), "profile": "smoke", "device": "cpu", "dims": 2, **values})


def printed(*arguments):
    done = CliRunner().invoke(app, [str(text) for text in arguments])
    assert done.exit_code == 0, done.output
    return done.output


NO_BEST = "of the segmentation network and the registration network the last weights are kept"


@pytest.mark.parametrize("parts, labelled", [("luuu", 1), ("ll", 2)])
def test_a_handful_of_scans_without_validation_and_test_is_trained(
    tmp_path, capsys, parts, labelled
):
    experiment = smoke(make(tmp_path, parts), joint_steps=3, keep="best")
    assert experiment.labelled == labelled
    folder = experiments.run(experiment, tmp_path / "runs")
    said = capsys.readouterr().out
    assert NO_BEST in said and "segmentation and registration cannot be scored" in said
    record = records.read_record(folder)
    assert record["finished"] and record["scored"] == record["validated"] == []
    assert set(record["steps"]) == set(experiment.table)
    for tabled in (reporting.results_table, reporting.comparison_table, reporting.gap_table):
        assert tabled(folder).empty
    assert reporting.structure_table(folder, "segmentation").empty
    assert reporting.load_scores(folder).empty and reporting.load_examples(folder) == []
    assert "cannot be scored" in printed("table", folder)


def test_without_labelled_validation_scans_the_last_weights_are_kept(tmp_path, monkeypatch):
    keep = training.Trainer.keep
    ended = []

    def watched(trainer, scores, names):
        keep(trainer, scores, names)
        if trainer.finished:
            for name in trainer.regime.trains:
                last = trainer.networks[name].state_dict()
                kept = trainer.best[name]
                ended.append(all(torch.equal(kept[part], last[part]) for part in last))

    monkeypatch.setattr(training.Trainer, "keep", watched)
    experiment = smoke(make(tmp_path, "lluu"), joint_steps=3, keep="best")
    experiments.run(experiment, tmp_path / "runs")
    trained = [name for regime in experiment.table.values() for name in regime.trains]
    assert ended == [True] * len(trained)


def test_what_can_be_scored_is_scored(tmp_path, capsys):
    experiment = smoke(make(tmp_path, "llluvttT"), joint_steps=3, keep="best")
    folder = experiments.run(experiment, tmp_path / "runs")
    said = capsys.readouterr().out
    kept = "of the registration network the last weights are kept, not the best"
    assert f"{kept}: that takes validation scans with labels, of 2 persons\n" in f"{said}\n"
    assert "cannot be scored" not in said
    record = records.read_record(folder)
    assert record["validated"] == ["seg"] and record["test_scans"] == 3
    scores = reporting.load_scores(folder)
    assert set(scores["subject"]) == {"t5", "t6"}  # the one without labels is not scored
    assert {"label_propagation", "identity", "deepatlas"} <= set(scores["regime"])
    assert len(reporting.load_examples(folder)) == 2


def test_of_test_scans_of_one_person_the_segmentation_alone_is_scored(tmp_path, capsys):
    folder = experiments.run(smoke(make(tmp_path, "lluoo"), joint_steps=3), tmp_path / "runs")
    assert "registration cannot be scored: that takes test scans" in capsys.readouterr().out
    scores = reporting.load_scores(folder)
    assert set(scores["task"]) == {"segmentation"} and set(scores["subject"]) == {"one"}
    assert set(reporting.comparison_table(folder)["task"]) == {"segmentation"}
    assert "Gain of DeepAtlas" in printed("table", folder)
    _, subjects = sweeps.collect([folder], tmp_path / "results")
    assert set(subjects["task"]) == {"segmentation"}
    assert set(sweeps.read_table(tmp_path / "results", "regimes")["task"]) == {"segmentation"}


def test_one_scan_alone_teaches_nobody(tmp_path):
    with pytest.raises(UserError, match="no pair among 1 training scans, 1 of them labelled"):
        experiments.run(smoke(make(tmp_path, "l")), tmp_path / "runs")


def test_volumes_of_ones_own_are_trained_too(tmp_path):
    folder = experiments.run(
        smoke(make(tmp_path, "luuu"), dims=3, regimes="joint", joint_steps=3), tmp_path / "runs"
    )
    assert records.read_record(folder)["shape"] == [16, 16, 16]


def test_a_run_is_found_again_where_its_files_were_moved_to(tmp_path, capsys):
    here = tmp_path / "here"
    path = make(here, "llt")
    folder = experiments.run(smoke(path, regimes="joint", joint_steps=3), tmp_path / "runs")
    here.rename(tmp_path / "there")
    moved = smoke(tmp_path / "there" / "cohort.toml", regimes="joint", joint_steps=3)
    assert experiments.run(moved, tmp_path / "runs") == folder
    assert "finished before" in capsys.readouterr().out
    record = records.read_record(folder)
    assert record["experiment"]["dataset"] == str(tmp_path / "there" / "cohort.toml")
    assert records.recorded_experiment(record).entry.home == tmp_path / "there"


def test_a_licence_that_is_mended_is_that_of_the_finished_run(tmp_path, capsys):
    """Nothing is trained again for it, and what is exported afterwards says it."""
    path = make(tmp_path, "llt")
    parameters = {"regimes": "joint", "joint_steps": 3}
    folder = experiments.run(smoke(path, **parameters), tmp_path / "runs")
    text = path.read_text()
    path.write_text('credit = "by us"\n' + text.replace('licence = "CC0"', 'licence = "CC BY"'))
    assert path.read_text() != text
    assert experiments.run(smoke(path, **parameters), tmp_path / "runs") == folder
    assert "finished before" in capsys.readouterr().out
    record = records.read_record(folder)
    for said in (record["entry"], record["preparation"]):
        assert (said["licence"], said["credit"]) == ("CC BY", "by us")


def test_other_labels_in_the_same_files_are_other_data(tmp_path):
    path = make(tmp_path, "llt")
    experiment = smoke(path, regimes="joint", joint_steps=3)
    folder = experiments.run(experiment, tmp_path / "runs")
    (folder / "scores.csv").unlink()
    write_case(tmp_path, "l0", 77)
    with pytest.raises(UserError, match="begun on other data than"):
        experiments.run(experiment, tmp_path / "runs")


def test_a_record_says_how_a_new_scan_is_prepared(tmp_path):
    path = make(tmp_path, "llt")
    text = path.read_text().replace("[1]", '[1, "11-12"]')
    path.write_text("align = true\n" + text.replace('"CC0"', '"CC BY"'))
    experiment = smoke(path, regimes="joint", joint_steps=3)
    folder = experiments.run(experiment, tmp_path / "runs")
    record = records.read_record(folder)
    assert record["preparation"] == {
        "label_numbers": [[1, 11, 12], [2]],
        "label_dtype": "uint8",
        "volume_shape": [16, 16, 16],
        "volume_spacing_mm": 2.0,
        "aligned": True,
        "channel": None,
        "licence": "CC BY",
        "credit": "",
    }
    reference = checkpoints.load_tensors(records.own_file(record, folder, "reference.pt"))
    assert reference["image"].shape == (1, 16, 16, 16)
    (folder / "reference.pt").unlink()
    (folder / "scores.csv").unlink()
    experiments.run(experiment, tmp_path / "runs")
    again = checkpoints.load_tensors(folder / "reference.pt")
    assert torch.equal(again["image"], reference["image"])


def test_the_kits_own_scans_are_prepared_as_their_indices(tmp_path):
    values = {"profile": "smoke", "dims": 2, "regimes": "joint", "device": "cpu"}
    said = records.read_record(experiments.run(parse(values), tmp_path))["preparation"]
    assert said["label_numbers"][:2] == [[1], [2]] and said["label_dtype"] == "uint8"
    assert not said["aligned"] and not list(tmp_path.glob("*/reference.pt"))


# --- many runs, and the command -------------------------------------------------------------------


def sweep_of(folder, text='dataset = "mice/cohort.toml"'):
    path = folder / "sweep.toml"
    rest = 'profile = "smoke"\ndims = 2\ndevice = "cpu"\nregimes = "joint"\njoint_steps = 3\n'
    path.write_text(f"[[sweep]]\n{text}\n{rest}")
    return path


def test_a_sweep_names_a_cohort_file_as_seen_from_its_own_folder(tmp_path, monkeypatch):
    (tmp_path / "mice").mkdir()
    path = write(tmp_path / "mice", SCANS)
    file = sweep_of(tmp_path, 'dataset = ["mice/cohort.toml", "mice", "phantom-knee"]')
    found = sweeps.read_sweep(file)
    assert [experiment.dataset for experiment in found] == [str(path), "phantom-knee"]
    monkeypatch.chdir(tmp_path / "mice")
    (own,) = sweeps.read_sweep(file, {"dataset": "cohort.toml"})
    assert own.dataset == str(path)
    (knee,) = sweeps.read_sweep(file, {"dataset": "phantom-knee"})
    assert knee.dataset == "phantom-knee"
    with pytest.raises(FileNotFoundError, match=r"mouse.toml: no such file"):
        sweeps.read_sweep(file, {"dataset": "mouse.toml"})


@pytest.mark.parametrize("parts", ["lltt", "luu"])
def test_collected_rows_name_the_cohort_and_not_its_place(tmp_path, parts):
    path = make(tmp_path / "mice", parts)
    file = sweep_of(tmp_path)
    rest = ("--root", tmp_path / "runs", "--results", tmp_path / "results")
    printed("sweep", file, f"dataset={path}", *rest)
    for name in ("regimes", "subjects"):
        table = sweeps.read_table(tmp_path / "results", name)
        assert table.empty == (parts == "luu")
    rows = sweeps.read_table(tmp_path / "results", "regimes")
    assert set(rows["dataset"]) <= {"mice"}
    printed("sweep", file, *rest)  # what is there already, even nothing, can be added to


def test_the_commands_take_a_cohort_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_RUNS", str(tmp_path / "runs"))
    make(tmp_path, "lluvtt")
    monkeypatch.chdir(tmp_path)
    values = ("dataset=cohort.toml", "profile=smoke", "dims=2", "device=cpu", "joint_steps=3")
    said = printed("run", *values, "--no-notebook")
    assert "\nmice: N = 2 of 3 training scans labelled, V = 1 labelled" in said
    assert "-N1-seed0-" in printed("warm", *values)  # what the lessons look for
    printed("weights", *values, "--to", tmp_path / "kept.pt")
    nets, _ = models.load(tmp_path / "kept.pt")
    assert set(nets) == {"seg", "reg"}
    done = CliRunner().invoke(app, ["weights", *values])
    assert done.exit_code != 0 and "name another file with --to" in str(done.exception)


@pytest.mark.parametrize("parts", ["luu", "lluvtt", "lluoo"])
def test_the_notebook_shows_what_there_is(tmp_path, parts):
    path = make(tmp_path, parts)
    folder = experiments.run(smoke(path, joint_steps=3), tmp_path / "runs")
    page = reporting.report(folder).read_text(encoding="utf-8")
    assert "mice" in page and ("cannot be scored" in page) == (parts != "lluvtt")


def test_unlabelled_test_scans_alone_score_nothing(tmp_path, capsys):
    folder = experiments.run(
        smoke(make(tmp_path, "llTT"), regimes="joint", joint_steps=3), tmp_path / "runs"
    )
    assert "segmentation and registration cannot be scored" in capsys.readouterr().out
    assert reporting.load_scores(folder).empty


def test_pages_of_lessons_find_a_cohort_file_beside_the_reader(tmp_path, monkeypatch):
    taken = []

    def stop(path, values):
        taken.append(values["dataset"])
        raise InterruptedError

    monkeypatch.setattr(site, "_executed", stop)
    path = write(tmp_path, SCANS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InterruptedError):
        next(iter(site.build(tmp_path / "site", {"dataset": "cohort.toml"}, ["01_data"])))
    assert taken == [str(path)]


def test_a_lesson_takes_the_labelled_scans_of_a_cohort_file(tmp_path):
    path = make(tmp_path, "llulvvtTt")
    values = {"dataset": str(path), "profile": "smoke", "display": "static"}
    lessons.execute(places.NOTEBOOKS / "07_evaluation.ipynb", values)


def test_a_lesson_says_how_many_labels_it_wants(tmp_path):
    cohort = load_cohort(str(make(tmp_path, "lluvTt")), profile="smoke", dims=2)
    said = "scans with labels were wanted, 3 for training, 2 for validation and 2 for test, got 2, "
    with pytest.raises(UserError, match=said):
        cohort.with_labels()
    labelled = cohort.with_labels((2, 1, 1))
    assert [scan.id for scan in labelled.scans] == ["l0", "l1", "v3", "t5"]
