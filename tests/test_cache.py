"""Prepared scans on disk: found again, never mistaken for others, mended, shared by processes, and
mapped into memory.
"""

import errno
import os
import re
import subprocess
import sys
import textwrap
import warnings
import weakref
from pathlib import Path

from deepatlas import datasets, phantom
from deepatlas.checkpoints import load_tensors, write_tensors
from deepatlas.datasets import cache as cache_module
from deepatlas.datasets import reading
from deepatlas.datasets.layouts import File
from deepatlas.datasets.preparation import Preparation

import nibabel as nib
import numpy as np
import pytest
import torch
from folders import write_case, write_dataset, write_nifti
from volumes import rng

LINUX = sys.platform == "linux"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A private DEEPATLAS_DATA with nine scans, and a private cache."""
    monkeypatch.setenv("DEEPATLAS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    return write_dataset(tmp_path / "data" / "hippocampus")


@pytest.fixture
def files(home, tmp_path):
    """A function: the files of the cache."""
    return lambda: sorted((tmp_path / "cache" / "scans").iterdir())


def entry(**changes):
    """Blocks that are not aligned, unless it is said so."""
    told = {"align": False, **changes}
    return datasets.describe("hippocampus").model_copy(update=told)


def load(**options):
    changes = {key: options.pop(key) for key in list(options) if key in datasets.Entry.model_fields}
    return datasets.load_cohort(entry(**changes), **{"profile": "smoke", **options})


def assert_same(one, other):
    """To the last bit, and in all that is said of the files."""
    assert one.fingerprint == other.fingerprint
    assert (one.label_dtype, one.volume) == (other.label_dtype, other.volume)
    for a, b in zip(one.scans, other.scans, strict=True):
        assert (a.id, a.subject) == (b.id, b.subject)
        assert a.image.dtype == b.image.dtype and torch.equal(a.image, b.image)
        assert torch.equal(a.affine, b.affine)
        if a.labels is None:
            assert b.labels is None
        else:
            assert a.labels.dtype == b.labels.dtype and torch.equal(a.labels, b.labels)
        assert torch.equal(a.source.affine, b.source.affine)
        for name in ("path", "shape", "digest", "image_digest", "step"):
            assert getattr(a.source, name) == getattr(b.source, name), name


@pytest.fixture
def reads(monkeypatch):
    """The scans that were read from their files, by id."""
    read = []

    def counted(*paths, **options):
        read.append(options["id"])
        return datasets.load_scan(*paths, **options)

    monkeypatch.setattr(reading, "load_scan", counted)
    return read


# --- hits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("align", [False, True])
def test_what_was_prepared_once_is_not_read_again(home, reads, capsys, dims, align):
    first = load(dims=dims, align=align)
    told = capsys.readouterr().out
    assert set(reads) == {scan.id for scan in first.scans}
    reads.clear()
    assert_same(first, load(dims=dims, align=align))
    assert capsys.readouterr().out == told and reads == []


def test_another_split_of_the_same_scans_reads_none_of_them_again(home, reads):
    load(seed=0)
    reads.clear()
    assert load(seed=1).train != () and reads == []


def test_a_folder_that_was_moved_is_known_again_under_its_new_names(home, reads, capsys):
    for path in (home / "imagesTr").glob("*.nii.gz"):
        image = nib.load(path)
        image.set_qform(np.diag([1.0, 1.0, 2.0, 1.0]), code=1)  # a warning that names the file
        image.to_filename(path)
    before = load()
    assert f"WARNING: {home}/imagesTr" in capsys.readouterr().out
    reads.clear()
    moved = home.rename(home.parent / "elsewhere")
    after = load(folder="elsewhere")
    assert reads == [] and f"WARNING: {moved}/imagesTr" in capsys.readouterr().out
    assert after.fingerprint == before.fingerprint
    assert all(scan.source.path.startswith(str(moved)) for scan in after.scans)


def test_unlabelled_scans_are_kept_too(home, reads):
    scan = home / "imagesTr" / "hippocampus_000.nii.gz"
    bare = File("a", "b", scan, None)
    grid = entry().grid("smoke", 3)
    for again in (False, True):
        reads.clear()
        reader = reading.Reader(entry(), {1: 1}, Preparation(grid, grid))
        (found,) = reader.read([bare])
        assert (
            found.scan.labels is None and found.numbers == "" and found.found == found.shown == ()
        )
        assert (found.scan.id, found.scan.subject) == ("a", "b")
        assert reads == ([] if again else ["a"])


@pytest.mark.parametrize("name, dims", [("phantom-brain", 2), ("phantom-knee", 3)])
def test_a_phantom_is_made_once(tmp_path, monkeypatch, name, dims):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path))
    sizes = {"split": {"full": (2, 1, 1)}}
    few = datasets.describe(name).model_copy(update=sizes)
    made = []

    def counted(*what, **where):
        made.append(what)
        return make_scan(*what, **where)

    make_scan = phantom.make_scan
    monkeypatch.setattr(phantom, "make_scan", counted)
    cohorts = [datasets.load_cohort(few, dims=dims, seed=seed) for seed in (0, 0, 1)]
    assert len(made) == 8
    assert [scan.subject for scan in cohorts[2].scans] != [
        scan.subject for scan in cohorts[0].scans
    ]
    assert cohorts[0].fingerprint == cohorts[1].fingerprint
    shape, spacing = cohorts[0].shape, cohorts[0].spacing
    for number, (one, other) in enumerate(zip(cohorts[0].scans, cohorts[1].scans, strict=True)):
        fresh = make_scan(few.anatomy, number, shape, spacing=spacing, seed=0)
        for scan in (one, other):
            assert (scan.id, scan.subject, scan.source) == (fresh.id, fresh.subject, None)
            assert torch.equal(scan.image, fresh.image) and torch.equal(scan.labels, fresh.labels)
            assert torch.equal(scan.affine, fresh.affine) and scan.affine.dtype == torch.float64
    moving, fixed = cohorts[1].scans[:2]
    truth = [cohorts[1].truth(moving, fixed), phantom.true_deformation(*cohorts[0].scans[:2])]
    assert torch.equal(truth[0].displacement, truth[1].displacement)


def test_small_phantoms_are_made_faster_than_they_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    datasets.load_cohort("phantom-brain", profile="smoke")
    assert not (tmp_path / "cache").exists()


# --- misses ---------------------------------------------------------------------------------------


def test_each_image_of_a_file_that_holds_several_is_kept_by_itself(home, tmp_path):
    path = tmp_path / "several.nii.gz"
    write_nifti(path, rng(0).random((12, 14, 12, 2), dtype=np.float32))
    grid = entry().grid("smoke", 3)
    digests = set()
    for channel in (0, 1, 0, 1):
        file = File("a", "a", path, None, channel=channel)
        (found,) = reading.Reader(entry(), {1: 1}, Preparation(grid, grid)).read([file])
        digests.add(found.scan.source.digest)
    assert len(digests) == 2


def test_a_changed_file_is_read_again_and_no_other(home, reads):
    load()
    reads.clear()
    write_case(home, "hippocampus_003", seed=99)
    assert load() and reads == ["hippocampus_003"]
    reads.clear()
    path = home / "labelsTr" / "hippocampus_005.nii.gz"
    labels = np.asarray(nib.load(path).dataobj).copy()
    labels[0, 0, 0] = 1
    write_nifti(path, labels)
    assert load() and reads == ["hippocampus_005"]


GRID = {"smoke-3d": datasets.Grid(shape=(16, 24, 16), spacing=2.4)}


@pytest.mark.parametrize(
    "changes",
    [
        {"dims": 2},
        {"align": True},
        {"grids": datasets.describe("hippocampus").grids | GRID},
        {"structures": (("anterior", (2,)), ("posterior", (1,)))},
        {"structures": (("both", (1, 2)),)},
        {"empty_labels": True},
    ],
    ids=str,
)
def test_another_preparation_is_another_file(home, reads, changes):
    load()
    reads.clear()
    assert load(**changes) and len(set(reads)) == 9


def test_other_code_prepares_anew(home, reads, monkeypatch):
    load()
    reads.clear()
    monkeypatch.setattr(cache_module, "code_hash", lambda file: f"other {file}")
    assert load() and len(reads) == 9


def test_the_code_that_decides_is_that_of_reading_resampling_and_aligning():
    from deepatlas.run_names import method_files

    found = {path.name for file in cache_module.OF_FILES for path in method_files(root=file)}
    assert {"nifti.py", "preparation.py", "grid.py", "registration.py", "warp.py"} <= found
    assert not {"cohorts.py", "training.py", "networks.py"} & found


def test_another_reference_aligns_anew(home, reads):
    load(align=True, seed=0)
    reads.clear()
    assert load(align=True, seed=1) and len(set(reads)) == 9


@pytest.mark.parametrize("number", [1, 7, 8])
def test_one_scan_that_is_missing_is_aligned_as_it_was_among_the_others(home, files, number):
    whole = load(align=True)
    wanted = whole.scans[number].image.clone()
    kept = [path for path in files() if path.read_bytes().find(wanted.numpy().tobytes()) > 0]
    assert len(kept) == 1
    kept[0].unlink()
    again = load(align=True)
    assert kept[0] in files()
    assert torch.equal(again.scans[number].image, wanted)


def test_a_scan_by_itself_is_prepared_as_those_of_the_cohort(home):
    cohort = load(align=True)
    preparation = Preparation(cohort.volume, (cohort.shape, cohort.spacing), cohort.reference)
    for scan in cohort.scans:
        path = home / "imagesTr" / f"{scan.id}.nii.gz"
        original = datasets.load_scan(path, None, id="new", subject="new", structures={})
        prepared = preparation.prepare(original)
        assert torch.equal(prepared.image, scan.image) and torch.equal(prepared.affine, scan.affine)


# --- damage ---------------------------------------------------------------------------------------

DAMAGES = {
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "another file": lambda content: b"\x89PNG" * 1000,
    "a changed header": lambda content: content.replace(b'"flat": false', b'"flat": fals3'),
    "a changed checksum": lambda content: content[:20] + b"0000" + content[24:],
    "no length": lambda content: content[:80] + b"x" * 13 + content[93:],
    "a long length": lambda content: content[:82] + b"9" * 12 + content[94:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(home, files, reads, damage):
    before = load()
    images = [scan.image.clone() for scan in before.scans]
    reads.clear()
    path = files()[4]
    sound = path.read_bytes()
    # as a new file: who has mapped the old one keeps it
    path.unlink()
    path.write_bytes(DAMAGES[damage](sound))
    assert path.read_bytes() != sound
    after = load()
    assert len(reads) == 1 and path.read_bytes() == sound
    assert_same(before, after)
    assert all(torch.equal(a, b.image) for a, b in zip(images, after.scans, strict=True))


def test_no_changed_byte_of_a_header_is_believed(home, files):
    load()
    path = files()[0]
    sound = path.read_bytes()
    end = sound.index(b"\n") + 1 + int(sound.split()[2])
    cache = cache_module.Cache()
    names = cache_module.Names("a", "a", "a.nii")
    assert cache.find(path.name, names) is not None
    random = rng(0)
    for _ in range(300):
        content = bytearray(sound)
        content[random.integers(end)] ^= 1 << random.integers(8)
        path.unlink()
        path.write_bytes(content)
        assert cache.find(path.name, names) is None


# --- maps -----------------------------------------------------------------------------------------


def test_scans_are_maps_of_their_files_and_hold_none_open(home, tmp_path):
    load()
    before = len(os.listdir("/proc/self/fd")) if LINUX else 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of tensors that cannot be written
        cohort = load()
    for scan in cohort.scans:
        assert scan.image.is_contiguous() and scan.labels.is_contiguous()
        assert scan.labels.data_ptr() - scan.image.data_ptr() == scan.image.nbytes  # of one file
    if LINUX:
        mapped = Path("/proc/self/maps").read_text()
        assert len(set(re.findall(rf"{tmp_path}/cache/scans/\w+", mapped))) == 9
        assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_scan_that_is_saved_takes_nothing_along_that_lies_beside_it(home, tmp_path):
    load()
    scan = load().train[0]
    write_tensors({"image": scan.image, "labels": scan.labels}, tmp_path / "both.pt")
    write_tensors({"image": scan.image}, tmp_path / "one.pt")
    found = load_tensors(tmp_path / "both.pt")
    assert torch.equal(found["image"], scan.image) and torch.equal(found["labels"], scan.labels)
    saved = (tmp_path / "one.pt").read_bytes()
    assert scan.image.numpy().tobytes() in saved and scan.labels.numpy().tobytes() not in saved
    assert b"affine" not in saved


def test_who_changes_a_voxel_changes_it_in_memory_alone(home):
    cohort = load()
    cohort.train[0].image[:] = 0.5
    cohort.train[0].labels[:] = 1
    again = load().train[0]
    assert again.image.std() > 0.01 and len(again.labels.unique()) == 3


@pytest.mark.parametrize("align", [False, True])
def test_one_original_at_a_time_is_in_memory(home, monkeypatch, align):
    alive = weakref.WeakSet()
    counts = []

    def watched(*paths, **options):
        scan = datasets.load_scan(*paths, **options)
        alive.add(scan.image)
        counts.append(len(alive))
        return scan

    monkeypatch.setattr(reading, "load_scan", watched)
    for number in range(9, 24):
        write_case(home, f"hippocampus_{number:03d}", number)
    training = [
        {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"}
        for name in sorted(path.name for path in (home / "imagesTr").iterdir())
    ]
    (home / "dataset.json").write_text(f'{{"training": {training}}}'.replace("'", '"'))
    load(align=align, split={"full": (12, 6, 6)})
    # and one that the loop still names while it reads the next
    assert len(counts) >= 24 and max(counts) <= 2


MEASURE = """
    import re, sys
    from pathlib import Path
    from deepatlas import datasets
    import torch

    def own():
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) / 1024

    entry = datasets.describe(sys.argv[1])
    before = own()
    cohort = datasets.load_cohort(entry, profile="full").hide_labels(1)
    total = sum(float(scan.image.sum()) for scan in cohort.scans)
    size = sum(scan.image.nbytes for scan in cohort.scans) / 2**20
    print("measured", own() - before, size)
"""


@pytest.mark.skipif(not LINUX, reason="Linux alone tells pages of files from others")
def test_many_scans_take_the_memory_of_few(tmp_path, monkeypatch):
    """32 images of 1 MiB each: what a process owns that looks at all of them is a fraction."""
    monkeypatch.setenv("DEEPATLAS_CACHE", str(tmp_path / "cache"))
    image = rng(0).integers(0, 1000, (64, 64, 64)).astype(np.int16)
    write_nifti(tmp_path / "labels.nii", (image > 500).astype(np.uint8))
    text = 'name = "many"\ntitle = "Many"\nlicence = "CC0"\nstructures = [["bright", [1]]]\n'
    text += "grids.full-3d = { shape = [64, 64, 64], spacing = 1.0 }\n"
    for number in range(32):
        image[0, 0, number] = 2000
        write_nifti(tmp_path / f"{number}.nii", image)
        text += f'[[scans]]\nid = "{number}"\nsubject = "{number}"\nimage = "{number}.nii"\n'
        text += 'labels = "labels.nii"\npart = "train"\n' if number == 0 else 'part = "train"\n'
    (tmp_path / "cohort.toml").write_text(text)
    datasets.load_cohort(datasets.describe(str(tmp_path / "cohort.toml")), profile="full")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path / "cohort.toml")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    _, grown, size = done.stdout.splitlines()[-1].split()
    assert float(size) == pytest.approx(32)
    assert float(grown) < float(size) / 3, "MiB"


# --- several processes ----------------------------------------------------------------------------

TOGETHER = """
    import sys, time
    from pathlib import Path
    from deepatlas import datasets
    entry = datasets.describe("hippocampus").model_copy(update={"align": True})
    Path(sys.argv[1]).touch()
    while len(list(Path(sys.argv[1]).parent.glob("ready-*"))) < 3:
        time.sleep(0.01)
    cohort = datasets.load_cohort(entry, profile="smoke")
    sums = [(scan.id, float(scan.image.double().sum())) for scan in cohort.scans]
    print("found", cohort.fingerprint, sums)
"""


def test_processes_that_prepare_one_cohort_at_once_find_the_same(home, files, tmp_path):
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(TOGETHER), str(tmp_path / f"ready-{number}")],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for number in range(3)
    ]
    said = [job.communicate(timeout=300)[0].splitlines()[-1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert said[0].startswith("found ") and len(set(said)) == 1
    assert len(files()) == 10 and not [path for path in files() if path.suffix]  # the reference too
    cohort = load(align=True)
    assert said[0].split()[1] == cohort.fingerprint
    assert str([(scan.id, float(scan.image.double().sum())) for scan in cohort.scans]) in said[0]


# --- a cache that cannot be written ---------------------------------------------------------------


def test_without_a_cache_all_goes_on_in_memory_and_it_is_said_once(home, tmp_path, capsys):
    wanted = load()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "scans").write_text("a file, where a folder was wanted")
    os.environ["DEEPATLAS_CACHE"] = str(tmp_path / "none")
    capsys.readouterr()
    assert_same(load(), wanted)
    told = capsys.readouterr().out
    assert told.count("WARNING: its scans stay in memory, not in the cache: ") == 1
    assert str(tmp_path / "none" / "scans") in told


def test_a_full_disk_is_no_obstacle(home, files, monkeypatch, capsys):
    wanted = load()
    written = []
    write = cache_module._write

    def full(prepared, path):
        if len(written) == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(prepared, path)

    monkeypatch.setattr(cache_module, "_write", full)
    for path in files():
        path.unlink()
    capsys.readouterr()
    assert_same(load(), wanted)
    assert "in the cache: " in (told := capsys.readouterr().out) and "no space is left" in told
    assert len(written) == 3 == len(files())


def test_a_file_that_another_process_holds_need_not_be_replaced(home, files, monkeypatch, capsys):
    """On Windows a file that is mapped cannot be replaced: the other process wrote the same."""
    wanted = load()
    kept = {path.name: path.read_bytes() for path in files()}
    for path in files():
        path.unlink()

    def held(path, write):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kept[path.name])
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(cache_module, "write_atomically", held)
    capsys.readouterr()
    assert_same(load(), wanted)
    assert "WARNING" not in capsys.readouterr().out
