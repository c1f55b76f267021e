"""A finished run of which one file is damaged: every reader says so in a sentence, or reads the
very same numbers as before; and ``run`` makes again what can be made again.
"""

import json
import os
import shutil
from pathlib import Path

from deepatlas import evidence, experiments, models, parameters, reporting, sweeps
from deepatlas.checkpoints import load_tensors, write_tensors
from deepatlas.errors import UserError
from deepatlas.parameters import parse

import fuzzing
import pandas as pd
import pytest
import torch

VALUES = {"profile": "smoke", "dims": 2, "device": "cpu", "precision": "float32"}
VALUES |= {"regimes": "joint", "labelled": 2}
READABLE = ("run.json", "scores.csv", "examples.pt", "history.csv")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(a run, another that drew other labelled scans); the code that names them stands still."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        name = parameters.method_hash()
        patch.setattr(parameters, "method_hash", lambda: name)
        root = tmp_path_factory.mktemp("runs")
        yield [
            experiments.run(parse(VALUES | {"label_seed": label_seed}), root)
            for label_seed in (0, 1)
        ]
    torch.set_num_threads(threads)


def linked(folder: Path, root: Path) -> Path:
    """A copy whose files take no room: they are replaced, never written into."""
    return shutil.copytree(folder, root / folder.name, copy_function=os.link)


def damaged(name, content, other, rng):
    """(how, the content of a file afterwards, None if it is gone)."""
    how = rng.choice(["bits", "cut", "cut at a line", "zeroed", "zeroed end", "swapped", "gone"])
    middle = rng.randrange(len(content))
    if how == "bits":
        content = fuzzing.flipped(content, rng, rng.choice([1, 1, 1, 3, 20]))
    elif how == "cut":
        content = content[:middle]
    elif how == "cut at a line":
        lines = content.splitlines(keepends=True)
        content = b"".join(lines[: rng.randrange(len(lines))])
    elif how == "zeroed":
        content = bytes(len(content))
    elif how == "zeroed end":
        content = content[:middle] + bytes(len(content) - middle)
    elif how == "swapped":
        content = other
    return how, None if how == "gone" else content


def rewrite(path, content):
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def same_tensors(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tensors(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_tensors, a, b))
    return a == b


def weights(folder):
    nets = experiments.load_networks(folder, "deepatlas")
    return {name: dict(net.state_dict()) for name, net in nets.items()}


def tables(folder):
    return [
        reporting.results_table(folder),
        reporting.structure_table(folder, "segmentation"),
        reporting.comparison_table(folder),
    ]


READERS = {
    "tables": tables,
    "history": reporting.load_history,
    "examples": reporting.load_examples,
    "weights": weights,
}


def same(a, b):
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, list) and isinstance(a[0], pd.DataFrame):
        return all(map(same, a, b))
    return same_tensors(a, b)


def one_sentence(error, folder):
    text = str(error)
    return "\n" not in text and str(folder) in text and len(text) < 1200


def test_a_damaged_file_is_told_or_read_as_it_was(runs, tmp_path):
    run, other = runs
    wanted = {name: read(run) for name, read in READERS.items()}
    files = [*READABLE, "deepatlas/checkpoint.pt"]
    for number, rng in fuzzing.cases(50):
        name = rng.choice(files)
        how, content = damaged(name, (run / name).read_bytes(), (other / name).read_bytes(), rng)
        folder = linked(run, tmp_path / str(number))
        rewrite(folder / name, content)
        with fuzzing.told(number, f"{name} {how}"):
            for what, read in READERS.items():
                try:
                    found = read(folder)
                except (UserError, FileNotFoundError) as error:
                    assert one_sentence(error, folder), error
                else:
                    assert same(wanted[what], found), f"{what}: other numbers, without a word"
        shutil.rmtree(folder.parent)


def test_a_damaged_file_of_a_finished_run_is_told_or_made_again(runs, tmp_path):
    run, other = runs
    experiment = parse(VALUES | {"label_seed": 0})
    scores, examples = (run / "scores.csv").read_bytes(), reporting.load_examples(run)
    history = reporting.load_history(run).drop(columns="seconds")
    trained = weights(run)
    checkpoints = [f"{key}/checkpoint.pt" for key in experiment.table]
    files = [*READABLE, *checkpoints]
    for number, rng in fuzzing.cases(8):
        lost = rng.sample(files, rng.choice([1, 1, 2]))
        folder = linked(run, tmp_path / str(number))
        done = []
        for name in lost:
            before, another = (run / name).read_bytes(), (other / name).read_bytes()
            how, content = damaged(name, before, another, rng)
            rewrite(folder / name, content)
            done.append(f"{name} {how}")
        with fuzzing.told(number, ", ".join(done)):
            try:
                assert experiments.run(experiment, folder.parent) == folder
            except UserError as error:
                assert one_sentence(error, folder), error
                # only what the record or the checkpoints say cannot be made of anything else
                assert any(name == "run.json" or name.endswith("t.pt") for name in lost), error
                assert "remove" in str(error)
                for name in lost:  # as it is told, one after the other
                    (folder / name).unlink(missing_ok=True)
                experiments.run(experiment, folder.parent)
            assert (folder / "scores.csv").read_bytes() == scores
            assert same(reporting.load_examples(folder), examples)
            assert same(reporting.load_history(folder).drop(columns="seconds"), history)
            for key in experiment.table:
                try:
                    experiments.load_networks(folder, key)
                except UserError as error:  # damage that nothing had to read so far
                    assert "trains this regime again" in str(error)
                    for name in set(lost).intersection(checkpoints):  # as it is told, each
                        (folder / name).unlink(missing_ok=True)
                    experiments.run(experiment, folder.parent)
                    experiments.load_networks(folder, key)
            assert same(weights(folder), trained)
            results = tmp_path / f"results {number}"
            sweeps.collect([folder], results)
            assert evidence.load_results(results)["run"].unique().tolist() == [folder.name]
        shutil.rmtree(folder.parent)


STRANGE = [None, 0, -1, 1e400, "", "x", [], {}, [[]], {"a": {}}, True, "\x1b[2J", 10**400]


def test_a_record_without_hashes_is_told_or_read(runs, tmp_path):
    """Of an earlier version: nothing in it is certain, and nothing ends in a traceback."""
    run, _ = runs
    whole = json.loads((run / "run.json").read_text(encoding="utf-8"))
    for name in ("sha256", "checksum"):
        del whole[name]
    for number, rng in fuzzing.cases(60):
        record = json.loads(json.dumps(whole))
        changed = rng.choice([record, record, record["experiment"], record["entry"]])
        changed = rng.choice([changed, changed, record["steps"]])
        key = rng.choice(list(changed))
        value = rng.choice([*STRANGE, "gone"])
        changed[key] = value
        if value == "gone":
            del changed[key]
        folder = linked(run, tmp_path / str(number))
        rewrite(folder / "run.json", json.dumps(record).encode())
        with fuzzing.told(number, f"{key} = {value!r}"[:80]):
            for read in READERS.values():
                try:
                    read(folder)
                except (UserError, FileNotFoundError) as error:
                    assert one_sentence(error, folder), error
        shutil.rmtree(folder.parent)


def test_a_damaged_table_of_results_is_told_or_read_as_it_was(runs, tmp_path):
    results, others = tmp_path / "results", tmp_path / "others"
    sweeps.collect(runs, results)
    sweeps.collect(runs[1:], others)
    wanted = evidence.load_results(results)
    for number, rng in fuzzing.cases(80):
        name = rng.choice(["regimes.csv", "subjects.csv"])
        before, another = (results / name).read_bytes(), (others / name).read_bytes()
        how, content = damaged(name, before, another, rng)
        while how == "bits":  # a digit may become another: these tables have no hash
            how, content = damaged(name, before, another, rng)
        folder = linked(results, tmp_path / str(number))
        rewrite(folder / name, content)
        with fuzzing.told(number, f"{name} {how}"):
            try:
                found = evidence.load_results(folder)
                evidence.gains(found)
            except (UserError, FileNotFoundError) as error:
                assert one_sentence(error, folder), error
            else:
                assert same(wanted, found), "other numbers, without a word"
        shutil.rmtree(folder.parent)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A small file of weights: its zip's own lines are a good part of it."""
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    nets = models.build("kit", 2, 3, velocity=True, passes=1)
    for net in nets.values():
        for key, value in net.state_dict().items():
            assert value.ndim == 0 or len(value) > 0, key
    record = {
        "experiment": parse({"dims": 2}).model_dump(),
        "structures": ["background", "one", "two"],
    }
    models.keep(nets, record, path)
    return path


def test_any_bit_of_a_file_of_weights_may_turn_over(kept, tmp_path):
    whole, values = models.load(kept)
    wanted = {name: dict(net.state_dict()) for name, net in whole.items()}
    content = kept.read_bytes()
    headers = [i for i in range(len(content)) if content[i : i + 2] == b"PK"]
    path = tmp_path / "damaged.pt"
    for number, rng in fuzzing.cases(60):
        changed = bytearray(content)
        near = rng.choice(headers) + rng.randrange(80)  # local headers, and the list at the end
        at = rng.choice([near, rng.randrange(len(content))]) % len(content)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with fuzzing.told(number, f"byte {at} of {len(content)}"):
            try:
                found, said = models.load(path)
            except UserError as error:
                assert one_sentence(error, path), error
            else:
                nets = {name: dict(net.state_dict()) for name, net in found.items()}
                assert same_tensors(nets, wanted) and said == values


def test_any_bit_of_a_small_file_of_tensors_may_turn_over(tmp_path):
    """So small that most of it is the zip's own."""
    path = tmp_path / "small.pt"
    values = {"a": torch.arange(6.0), "b": [torch.tensor([1, 2]), "text"], "c": 1.5}
    write_tensors(values, path)
    content = path.read_bytes()
    for number, rng in fuzzing.cases(1500):
        path.write_bytes(fuzzing.flipped(content, rng))
        with fuzzing.told(number, "one bit"):
            try:
                found = load_tensors(path)
            except UserError as error:
                assert one_sentence(error, path), error
            else:
                assert same_tensors(found, values)
