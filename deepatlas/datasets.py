"""Cohorts by name, as listed in ``tutorials_data/datasets.toml``: phantoms made on the spot, and
real scans.

Real scans are looked for in the folder that the environment variable ``DEEPATLAS_DATA`` names, then
in the cache; those with a public address are downloaded once.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pooch
import torch
from torch import Tensor

from . import phantom
from .data import Cohort, Scan, centred_affine, check_sides, load_scan, resample, split_by_subject
from .registration import align

MANIFEST = Path(__file__).resolve().parent.parent / "tutorials_data" / "datasets.toml"
SIZES = ("smoke", "class", "full")


@cache
def manifest() -> dict[str, dict]:
    """The data sets by name."""
    if not MANIFEST.is_file():
        raise FileNotFoundError(
            f"{MANIFEST}: not found; install the project from its folder: pip install -e ."
        )
    entries = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))
    return {
        name: {**entries.get(entry.get("like", name), {}), **entry}
        for name, entry in entries.items()
    }


def describe(name: str) -> dict:
    """The manifest's entry of cohort ``name``; ValueError with the names there are if it is
    unknown.
    """
    if name not in manifest():
        close = difflib.get_close_matches(name, manifest(), 1)
        raise ValueError(
            f"there is no cohort {name!r}{f', did you mean {close[0]!r}' if close else ''}: "
            f"choose from {', '.join(manifest())}"
        )
    return manifest()[name]


def split_sizes(name: str, size: str) -> list[int]:
    """Scans for train, validation and test."""
    split = describe(name)["split"]
    return split["published" if "published" in split else size]


def load_cohort(
    name: str, *, size: str = "class", dims: int | None = None, seed: int = 0
) -> Cohort:
    """The cohort ``name`` on its grid of ``size`` ("smoke", "class", "full"); prints its licence.

    ``dims`` is 2 for slices, 3 for volumes, by default what the manifest says the cohort is for.
    ``seed`` draws the split where none is published, and the subjects of a phantom.
    """
    entry = describe(name)
    dims = entry["dims"] if dims is None else dims
    if size not in SIZES or dims not in (2, 3):
        raise ValueError(
            f"size must be one of {', '.join(SIZES)} and dims 2 or 3, got {size!r} and {dims}"
        )
    print(f"{name}: {entry['title']}. {entry['licence']}. {entry.get('credit', '')}".rstrip())
    shape, spacing = (
        tuple(entry["grids"][f"{size}-{dims}d"]["shape"]),
        entry["grids"][f"{size}-{dims}d"]["spacing"],
    )
    check_sides(shape, 8)
    if "anatomy" in entry:
        return _phantoms(name, entry, (shape, spacing), size, seed)
    folder = find(name)
    structures, lookup = _structures(entry, folder)
    parts = list(_read_parts(entry, folder, lookup, (size, seed)))
    volume = entry["grids"][f"{size}-3d"]
    parts = _on_grid(
        parts, tuple(volume["shape"]), volume["spacing"], entry["align"], (shape, spacing)
    )
    return Cohort(name, structures, spacing, *parts, entry["licence"])


# --- phantoms -------------------------------------------------------------------------------------


def _phantoms(
    name: str, entry: Mapping, grid: tuple[Sequence[int], float], size: str, seed: int
) -> Cohort:
    subjects = iter(range(sum(entry["split"][size])))
    parts = [
        tuple(
            phantom.make_scan(entry["anatomy"], next(subjects), grid[0], spacing=grid[1], seed=seed)
            for _ in range(count)
        )
        for count in entry["split"][size]
    ]
    return Cohort(
        name,
        phantom.STRUCTURES[entry["anatomy"]],
        grid[1],
        *parts,
        entry["licence"],
        phantom.true_deformation,
    )


# --- files ----------------------------------------------------------------------------------------


def local(name: str) -> Path | None:
    """The folder of a data set of files under ``DEEPATLAS_DATA`` or in the cache, if it is there."""
    home = os.environ.get("DEEPATLAS_DATA")
    places = [
        place / describe(name).get("folder", name)
        for place in ([Path(home).expanduser()] if home else []) + [cache_folder()]
    ]
    return next((place.resolve() for place in places if (place / "dataset.json").is_file()), None)


def find(name: str) -> Path:
    """The folder of a data set of files: found, or else downloaded into the cache."""
    if found := local(name):
        return found
    entry, home = describe(name), os.environ.get("DEEPATLAS_DATA")
    folder = entry.get("folder", name)
    if "url" not in entry:
        looked = (
            f"{home} (DEEPATLAS_DATA)"
            if home
            else "the folder that DEEPATLAS_DATA would name (it is not set)"
        )
        raise FileNotFoundError(
            f"{name}: no folder {folder} with a dataset.json in {looked}, and it has no public "
            "address: set DEEPATLAS_DATA to the folder that holds it"
        )
    return download(entry["url"], entry["sha256"], cache_folder() / folder)


def cache_folder() -> Path:
    """Where downloads are kept: the environment variable ``DEEPATLAS_CACHE``, or the user's cache."""
    return Path(os.environ.get("DEEPATLAS_CACHE") or pooch.os_cache("deepatlas")).expanduser()


def download(url: str, sha256: str, folder: Path) -> Path:
    """Fetch the tar archive at ``url``, check it, and unpack the folder of its ``dataset.json`` as
    ``folder``, once.

    Nothing is left half-written: the archive must have the checksum ``sha256``, members that would
    land outside are refused (ValueError), and the folder appears when it is complete. Without
    network, ConnectionError says what to do.
    """
    if (folder / "dataset.json").is_file():
        return folder
    if folder.exists():
        raise ValueError(
            f"{folder}: is there, but holds no dataset.json: remove it, and the data are fetched again"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # private: several runs may start at once
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        archive, unpacked = (
            _fetch(url, sha256, Path(temporary), folder.name),
            Path(temporary) / "unpacked",
        )
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter=_inside)
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{url}: not a safe and complete tar archive ({error})") from error
        found = sorted(unpacked.glob("**/dataset.json"))
        if not found:
            raise ValueError(f"{url}: the archive holds no dataset.json; is it the right one?")
        if not (folder / "dataset.json").is_file():  # another run was not faster
            found[0].parent.rename(folder)
    return folder


def _fetch(url: str, sha256: str, home: Path, name: str) -> Path:
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", "archive", home, progressbar=True))
    except ValueError as error:
        raise ValueError(
            f"{url}: the download is damaged, its checksum is not {sha256}: try again"
        ) from error
    except OSError as error:
        # a full disk or a forbidden folder; requests' own errors have no number
        if error.errno is not None:
            raise
        answer = getattr(error, "response", None)
        reason = (
            type(error).__name__
            if answer is None
            else f"the server answers {answer.status_code} {answer.reason}"
        )
        raise ConnectionError(
            f"{url} cannot be downloaded ({reason}): check the connection and try again, or fetch it "
            f"elsewhere and set DEEPATLAS_DATA to the folder that holds {name}/"
        ) from error


def _inside(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    if member.name.startswith("/"):  # tarfile's own filter would strip the slash and go on
        raise tarfile.AbsolutePathError(member)
    return tarfile.data_filter(member, path)


def _dataset(folder: Path) -> dict:
    path = folder / "dataset.json"
    try:
        dataset = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not valid JSON ({error}): restore the file that came with the data"
        ) from error
    items = dataset.get("training") if isinstance(dataset, dict) else None
    if not isinstance(items, list) or not items:
        raise ValueError(
            f"{path}: a list 'training' of image and label files was wanted, and is missing or empty"
        )
    for item in items:
        if not isinstance(item, dict) or not all(
            isinstance(item.get(key), str) for key in ("image", "label")
        ):
            raise ValueError(
                f"{path}: each entry of 'training' must name its 'image' and its 'label', got {item!r}"
            )
    return dataset


def _structures(entry: Mapping, folder: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names with background first, and label number -> index."""
    if "regions" not in entry:
        merged = entry["structures"]
    # one structure per cortical region: "Right ACgG  anterior cingulate gyrus" and its left twin
    else:
        low, high = entry["regions"]
        names: dict[str, list] = {}
        for number, text in _dataset(folder).get("labels", {}).items():
            if low <= int(number) <= high:
                names.setdefault(" ".join(text.split()[2:]) or text, []).append(int(number))
        merged = list(names.items())
    lookup = {
        number: index for index, (_, numbers) in enumerate(merged, 1) for number in _expand(numbers)
    }
    return ("background", *(name for name, _ in merged)), lookup


def _expand(numbers: Sequence[int | str]) -> Iterator[int]:
    for item in numbers:
        low, _, high = str(item).partition("-")
        yield from range(int(low), int(high or low) + 1)


def _read_parts(
    entry: Mapping, folder: Path, lookup: Mapping[int, int], draw: tuple[str, int]
) -> Iterator[tuple[Scan, ...]]:
    """Train, validation and test scans as they are in their files; only those of the split are
    read.
    """
    size, seed = draw
    dataset = _dataset(folder)
    listed = [item for item in dataset["training"] if not Path(item["image"]).name.startswith("._")]
    items = {re.sub(r"\.nii(\.gz)?$", "", Path(item["image"]).name): item for item in listed}
    if len(items) < len(listed):
        raise ValueError(
            f"{folder / 'dataset.json'}: {len(listed)} images have only {len(items)} different names: "
            "name each by its scan"
        )
    persons = {name.split("_")[-1]: name.split("_")[-1] for name in items}
    twins = dataset.get("same_person_twice", [])
    for group in twins if isinstance(twins, list) else [twins]:
        if not isinstance(group, list) or not group or not {*map(str, group)} <= persons.keys():
            raise ValueError(
                f"{folder / 'dataset.json'}: 'same_person_twice' must list the numbers of scans, as they "
                f'end their names, in lists such as ["003", "017"], got {group!r}'
            )
        persons |= dict.fromkeys(map(str, group), str(group[0]))

    def stub(name: str) -> Scan:  # a scan without its voxels: splitting needs only the names
        return Scan(name, persons[name.split("_")[-1]], torch.zeros(1, 1, 1), torch.eye(4))

    if "published" in entry["split"]:
        group = {
            kind: [stub(name) for name, item in items.items() if item.get("group") == kind]
            for kind in ("train", "test")
        }
        parts = (
            *split_by_subject(group["train"], entry["split"]["published"][:2], seed),
            tuple(group["test"]),
        )
    else:
        parts = split_by_subject([stub(name) for name in items], entry["split"][size], seed)
    for part in parts:
        yield tuple(
            load_scan(
                folder / items[s.id]["image"],
                folder / items[s.id]["label"],
                id=s.id,
                subject=s.subject,
                structures=lookup,
            )
            for s in part
        )


def _on_grid(
    parts: Sequence[Sequence[Scan]],
    shape: tuple[int, ...],
    spacing: float,
    aligned: bool,
    wanted: tuple[tuple[int, ...], float],
) -> list[tuple[Scan, ...]]:
    """Every scan on the common 3D grid, aligned to the first training scan if ``aligned``; in 2D,
    its middle plane.
    """
    originals = [scan for part in parts for scan in part]
    scans = [resample(scan, centred_affine(scan, shape, spacing), shape) for scan in originals]
    if aligned:
        scans = align(scans, originals, reference=scans[0])
    if wanted[0] != shape:
        plane = _plane(shape, spacing, *wanted)
        scans = [
            resample(original, scan.affine @ plane, wanted[0])
            for scan, original in zip(scans, originals, strict=True)
        ]
    queue = iter(scans)
    return [tuple(next(queue) for _ in part) for part in parts]


def _plane(
    shape: Sequence[int], spacing: float, flat: Sequence[int], flat_spacing: float
) -> Tensor:
    """(4, 4) voxels of a 2D grid -> voxels of the 3D grid whose middle axial plane it is."""
    matrix = torch.eye(4, dtype=torch.float64) * (flat_spacing / spacing)
    matrix[3, 3] = 1
    centre, flat_centre = (
        (torch.tensor((*s, 1)[:3], dtype=torch.float64) - 1) / 2 for s in (shape, flat)
    )
    matrix[:3, 3] = centre - matrix[:3, :3] @ flat_centre
    return matrix
