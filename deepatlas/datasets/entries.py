"""What is said of a data set, checked, as an ``Entry``: a table of ``datasets.toml``, or a cohort
file.

The kit's own tables are those of ``tutorials_data/datasets.toml``. A new data set is one table
more: title, licence, split, one grid, and what is in it. A user's own scans are said in a cohort
file, which lists them one by one.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from .. import places
from ..checkpoints import parsed_toml
from ..errors import UserError, brief, meant
from ..phantom import anatomy_of
from .grid import check_sides

Profile = Literal["smoke", "class", "full"]
Dims = Literal[2, 3]
Part = Literal["train", "validation", "test"]

PROFILES: tuple[Profile, ...] = ("smoke", "class", "full")  # from the smallest to the largest
GRIDS = tuple(f"{profile}-{dims}d" for profile in PROFILES for dims in (2, 3))
SMOKE_SIDE = 24  # voxels, at most, where a grid for smoke is derived

PARTS: tuple[Part, ...] = ("train", "validation", "test")
SMOKE_SCANS = {"train": 4, "validation": 2, "test": 3}  # of a cohort file, at most
WORDS = ("title", "licence", "credit")  # of an entry: what no training depends on
COHORT_FILE = "cohort.toml"  # its name, where only a folder is named

# more than any computer of today holds at once: a slip of the finger, not a wish
MOST_SCANS = 100_000
MOST_VOXELS = 10**9
MOST_NUMBERS = 100_000  # in one range of label numbers
LARGEST_NUMBER = 2**63 - 1  # the largest integer that a file may hold


def _one_line(text: str) -> str:
    """What is printed and named in tables holds nothing that steers a terminal."""
    if not text.isprintable():
        raise ValueError(
            f"text without line breaks and control characters was wanted, got {brief(text)}"
        )
    return text


def _words(text: str) -> str:
    if not text.strip():
        raise ValueError(f"some text was wanted, got {brief(text)}")
    return _one_line(text)


def _numbers(item: object) -> object:
    """One label number, or a range of them."""
    for _ in expand([item]):  # raises if it is none
        break
    return item


Line = Annotated[str, AfterValidator(_one_line)]
Words = Annotated[str, AfterValidator(_words)]  # a line that is not empty
LabelNumbers = Annotated[int | str, BeforeValidator(_numbers)]
LabelNumber = Annotated[int, Field(strict=True, ge=1, le=LARGEST_NUMBER)]
Count = Annotated[int, Field(strict=True)]
Sizes = tuple[Count, Count, Count]  # scans for train, validation, test


class Grid(BaseModel):
    """Voxels along each axis, and the millimetres from one to the next."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shape: tuple[Count, ...]
    # a nanometre is 1e-6 mm; more than 10 m between two voxels is a mistake of units
    spacing: float = Field(ge=1e-6, le=1e4, strict=True)


class ScanFile(BaseModel):
    """One scan of a cohort file; paths are relative to the folder of that file, or absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Words
    subject: Words  # scans of one person are in one part
    image: Words
    labels: Words | None = None  # None: nobody has drawn any
    part: Part

    @model_validator(mode="after")
    def _check_paths(self) -> ScanFile:
        if self.image == self.labels:
            raise ValueError(f"{brief(self.image)} is an image and its own labels")
        return self


class Entry(BaseModel):
    """What is said of one data set; frozen plain values, so a run can keep them as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    title: Words
    licence: Words
    credit: Line = ""  # whose it is, as they want it said
    dims: Dims = 3  # what an experiment takes if it is not told: slices or volumes
    align: StrictBool = False  # an affine alignment of the images to one training scan
    # every data set but a cohort file has one: ``split_sizes`` tells the sizes
    split: dict[str, Sizes] | None = None
    grids: dict[str, Grid]

    # what is in it: one of three
    anatomy: str | None = None  # phantoms: a name in ``phantom.ANATOMIES``
    # files: name and label numbers, merged; "a-b" is a range
    structures: tuple[tuple[Words, tuple[LabelNumbers, ...]], ...] | None = None
    # files: label numbers from a to b, named in the folder
    regions: tuple[LabelNumber, LabelNumber] | None = None
    # files: how the name of a scan gives its person, as "mouse_{subject}_*"
    subject: Words | None = None
    empty_labels: StrictBool = False  # files: are there scans without any structure?
    # scan ids, * for anything: whose labels are kept first where all but N are hidden
    labelled_first: Words | None = None

    # where its files are
    layout: Words = "decathlon"  # a name in ``layouts.LAYOUTS``
    # layout "subjects": the files of a scan, as "{scan}/t1.nii.gz"; * is any one folder
    image: Words | None = None
    labels: Words | None = None
    # a published split, where the folder says none: scan ids on each side, * for anything
    groups: dict[Part, tuple[Words, ...]] | None = None
    # which image of files that hold several, as contrasts of one scan; counted from 0
    channel: int | None = Field(default=None, strict=True, ge=0, le=1000)
    folder: Words | None = None  # by default ``name``
    url: str | None = Field(default=None, pattern=r"^https://\S+$")  # of a tar archive
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    # where no sha256 is published
    md5: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")

    # a cohort file's own: its scans, and the folder that it is in, which may be moved
    scans: tuple[ScanFile, ...] | None = None
    home: Path | None = Field(default=None, exclude=True)

    # --- checks ---

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]{0,99}", name):
            raise ValueError(
                "letters, digits, '_', '-' and '.' were wanted, as folders of runs are named after "
                f"it, got {brief(name)}"
            )
        return name

    @field_validator("split", mode="before")
    @classmethod
    def _one_for_all(cls, split: object) -> object:
        """One list of sizes serves all profiles: the smaller ones take it from full."""
        return {"full": split} if isinstance(split, list | tuple) else split

    @field_validator("split")
    @classmethod
    def _check_split(cls, split: dict[str, Sizes] | None) -> dict[str, Sizes] | None:
        known = (*PROFILES, "published")
        if split is None:
            return None
        if not split:
            raise ValueError(f"sizes for one of {', '.join(known)} were wanted")
        for key, sizes in split.items():
            if key not in known:
                raise ValueError(f"there is no profile {key!r}: choose from {', '.join(known)}")
            if min(sizes) < 0 or sizes[0] < 1 or max(sizes) > MOST_SCANS:
                raise ValueError(
                    "numbers of scans for train, validation and test were wanted, at least one "
                    f"for train and at most {MOST_SCANS:,} each, got {brief(list(sizes))}"
                )
        return split

    @field_validator("grids")
    @classmethod
    def _check_grids(cls, grids: dict[str, Grid]) -> dict[str, Grid]:
        if not grids:
            raise ValueError(f"one grid at least, full-3d, was wanted of {', '.join(GRIDS)}")
        for key, grid in grids.items():
            if key not in GRIDS:
                raise ValueError(f"there is no grid {key!r}: choose from {', '.join(GRIDS)}")
            dims = int(key[-2])
            if len(grid.shape) != dims:
                raise ValueError(f"{key} wants {dims} sides, got {brief(list(grid.shape))}")
            if math.prod(grid.shape) > MOST_VOXELS:
                raise ValueError(
                    f"{key} must have at most {MOST_VOXELS:,} voxels, got {brief(grid.shape)}"
                )
            check_sides(grid.shape)
        return grids

    @field_validator("anatomy")
    @classmethod
    def _check_anatomy(cls, anatomy: str | None) -> str | None:
        if anatomy is not None:
            anatomy_of(anatomy)  # raises if there is none
        return anatomy

    @field_validator("structures")
    @classmethod
    def _check_structures(cls, structures: tuple | None) -> tuple | None:
        """Each name once, and each label number in one structure: the last would win."""
        if structures == ():
            raise ValueError("one structure at least was wanted, with its label numbers")
        owners: dict[int, str] = {}  # of each label number
        names = {"background"}
        for name, numbers in structures or ():
            if name.strip().lower() in names:  # in a table they would look alike
                raise ValueError(f"the name {name!r} is there twice: name each structure once")
            names.add(name.strip().lower())
            if not numbers:
                raise ValueError(f"{name!r} has no label number")
            for number in expand(numbers):
                owner = owners.setdefault(number, name)
                if owner != name:
                    raise ValueError(
                        f"the label number {number} belongs to {owner!r} and to {name!r}: "
                        "leave it out of one"
                    )
        return structures

    @field_validator("regions")
    @classmethod
    def _check_regions(cls, regions: tuple[int, int] | None) -> tuple[int, int] | None:
        if regions is not None and regions[0] > regions[1]:
            raise ValueError(
                f"label numbers from the smaller to the larger were wanted, got {list(regions)}"
            )
        return regions

    @field_validator("subject")
    @classmethod
    def _check_subject(cls, template: str | None) -> str | None:
        if template is None:
            return None
        rest = template.replace("{subject}", "", 1)
        braces_or_separators = set("{}/\\") & set(rest)
        if rest == template or braces_or_separators or rest.count("*") > 3:
            raise ValueError(
                "the name of a scan without its ending was wanted, with {subject} once for the "
                f"person and at most three * for anything, got {template!r}"
            )
        if "{subject}*" in template or "*{subject}" in template:
            raise ValueError(
                "nothing says where the person ends: write what stands between {subject} and *, "
                f'as in "{{subject}}_*", got {template!r}'
            )
        return template

    @field_validator("image", "labels")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        if template is None:
            return None
        rest = template.replace("{scan}", "", 1)
        if rest == template or set("{}") & set(rest) or not inside(template):
            raise ValueError(
                "the path of a scan's file in the folder was wanted, without '..', with {scan} "
                f'once for the scan, as in "{{scan}}/t1.nii.gz", got {template!r}'
            )
        return template

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, folder: str | None) -> str | None:
        if folder is not None and not inside(folder):
            raise ValueError(
                "a folder in that of all data (DEEPATLAS_DATA) was wanted, as a relative path "
                f"without '..', got {folder!r}"
            )
        return folder

    @model_validator(mode="after")
    def _check_contents(self) -> Entry:
        told = [
            key for key in ("anatomy", "structures", "regions") if getattr(self, key) is not None
        ]
        if len(told) != 1:
            raise ValueError(
                "one of anatomy (phantoms), structures or regions (files) says what is in it, "
                f"got {' and '.join(told) or 'none of them'}"
            )
        if self.url is not None and self.checksum is None:
            raise ValueError("a url wants the sha256 of what is fetched there, or its md5")
        if self.labels is not None and self.image is None:
            raise ValueError("labels = ... wants image = ..., by which a scan is found")
        if self.scans is None and self.split is None:
            raise ValueError("split is missing")
        return self

    @model_validator(mode="after")
    def _check_scans(self) -> Entry:
        if self.scans is None:
            return self
        if self.structures is None:
            raise ValueError(
                "its scans want structures, each with its label numbers, as in "
                '[["femur", [1]], ["tibia", [2, 3]]]'
            )
        if self.split is not None:
            raise ValueError("each of its scans says its part, so there is no split beside them")
        if "full-3d" not in self.grids and (self.dims == 3 or "full-2d" not in self.grids):
            wanted = "full-3d" if self.dims == 3 else "full-3d or, for slices, full-2d"
            raise ValueError(f"grids: {wanted} was wanted, got {', '.join(self.grids)}")
        _check_that_each_is_there_once(self.scans)
        _check_that_no_person_is_in_two_parts(self.scans)
        train = [scan for scan in self.scans if scan.part == "train"]
        if not train:
            raise ValueError('no scan is there to train on: say part = "train" of some')
        if all(scan.labels is None for scan in train):
            raise ValueError(
                f"none of its {len(train)} training scans has labels: one at least was wanted"
            )
        return self

    @property
    def checksum(self) -> str | None:
        """Of what is fetched at its url: the hexadecimal digits of SHA-256, or those of MD5."""
        return self.sha256 or self.md5

    # --- what it says of a profile ---

    @property
    def folder_name(self) -> str:
        """The folder of its files, in the folder of all data."""
        return self.folder or self.name

    def scans_of(self, profile: Profile, part: str) -> list[ScanFile]:
        """The scans of a cohort file in a ``part`` of PARTS.

        For smoke few, labelled ones first, and in train one without labels, if there is any: a test
        that leaves these out does not test joint training.
        """
        scans = [scan for scan in self.scans or () if scan.part == part]
        if profile != "smoke":
            return scans
        labelled_first = sorted(scans, key=lambda scan: scan.labels is None)
        few = labelled_first[: SMOKE_SCANS[part]]
        unlabelled = [scan for scan in scans if scan.labels is None]
        if part == "train" and unlabelled and few[-1].labels is not None:
            few[-1] = unlabelled[0]
        return few

    def split_sizes(self, profile: Profile) -> list[int]:
        """Scans for train, validation and test.

        A published split is that of every profile. A profile of which ``split`` says nothing takes
        the sizes of the next larger one that it names, or else of the largest. A cohort file's
        scans say themselves where they belong.
        """
        if self.scans is not None:
            return [len(self.scans_of(profile, part)) for part in PARTS]
        split = self.split or {}  # which only a cohort file lacks
        if "published" in split:
            return list(split["published"])
        larger = PROFILES[PROFILES.index(profile) :]
        smaller = reversed(PROFILES[: PROFILES.index(profile)])
        for key in (*larger, *smaller):
            if key in split:
                return list(split[key])
        raise AssertionError("an entry has a split")

    def labelled_at_most(self, profile: Profile) -> int:
        """Training scans that may keep their labels: of a cohort file, those that have any."""
        if self.scans is None:
            return self.split_sizes(profile)[0]
        return sum(scan.labels is not None for scan in self.scans_of(profile, "train"))

    def identity(self) -> dict:
        """What makes it this data set, as JSON: all but where its scans are, which may be moved,
        and the WORDS about it, which may be mended.

        What is in the files is in ``Cohort.fingerprint``.
        """
        said = self.model_dump(mode="json", exclude=set(WORDS))
        for scan in said["scans"] or ():
            del scan["image"]
            scan["labels"] = scan["labels"] is not None
        return said

    def grid(self, profile: Profile, dims: int) -> tuple[tuple[int, ...], float]:
        """(shape in voxels, spacing in mm) of a profile.

        What ``grids`` does not say follows from full-3d. class: twice its spacing. smoke: that
        spacing again, or the one at which the longest side has 24 voxels, if it is larger. Sides
        are rounded up to multiples of 8, and are 16 at least. 2D: the first two sides of the 3D
        grid; of files that are slices themselves, as full-2d says, without any full-3d.
        """
        said = self.grids.get(f"{profile}-{dims}d")
        if said is not None:
            return said.shape, said.spacing
        slices = "full-2d" in self.grids and "full-3d" not in self.grids
        if dims == 2 and not slices:
            shape, spacing = self.grid(profile, 3)
            return shape[:2], spacing
        full = self.grids.get(f"full-{dims}d")
        if full is None and "full-2d" in self.grids:
            raise UserError(
                f"{self.name}: there is no grid {profile}-3d, and no full-3d from which it "
                "follows, as its scans are slices: take dims=2"
            )
        if full is None:
            raise UserError(
                f"{self.name}: there is no grid {profile}-3d, and no full-3d from which it "
                "follows: add grids.full-3d = { shape = [160, 192, 160], spacing = 1.0 }, say"
            )
        extent = [side * full.spacing for side in full.shape]  # mm
        spacing = 2 * full.spacing
        if profile == "smoke":
            spacing = max(spacing, max(extent) / SMOKE_SIDE)
        return tuple(_rounded_up(length / spacing) for length in extent), spacing


def _check_that_each_is_there_once(scans: Sequence[ScanFile]) -> None:
    ids: set[str] = set()
    owners: dict[str, ScanFile] = {}  # of each image
    for scan in scans:
        if scan.id in ids:
            raise ValueError(f"the scan {scan.id!r} is there twice: give each an id of its own")
        ids.add(scan.id)
        owner = owners.setdefault(scan.image, scan)
        if owner is not scan:
            raise ValueError(
                f"the scans {owner.id!r} and {scan.id!r} have the same image, "
                f"{brief(scan.image)}: list it once"
            )


def _check_that_no_person_is_in_two_parts(scans: Sequence[ScanFile]) -> None:
    first: dict[str, ScanFile] = {}  # of each person
    for scan in scans:
        other = first.setdefault(scan.subject, scan)
        if other.part != scan.part:
            raise ValueError(
                f"one person, {scan.subject!r}, is in two parts: scan {other.id!r} in "
                f"{other.part} and scan {scan.id!r} in {scan.part}: put all scans of a person in "
                "one, or networks are tested on whom they have seen"
            )


def _rounded_up(side: float) -> int:
    """The next multiple of 8, at least 16; the last bits of a division do not count."""
    return max(16, 8 * math.ceil(round(side / 8, 6)))


def expand(numbers: Iterable[object]) -> Iterator[int]:
    """The label numbers of a structure one by one: 44 is itself, and "49-52" a range.

    UserError where an item is neither, a range runs backwards, or holds 0, the background.
    """
    for item in numbers:
        low, high = _range(item)
        if low == 0:
            raise UserError(
                f"0 is the background's label number, and no structure's, got {brief(item)}"
            )
        if high < low:
            raise UserError(
                f"a range of label numbers from the smaller to the larger was wanted, as "
                f'"{high}-{low}", got {item!r}'
            )
        if high > LARGEST_NUMBER or high - low >= MOST_NUMBERS:
            raise UserError(
                f"label numbers up to {LARGEST_NUMBER} were wanted, at most {MOST_NUMBERS:,} in a "
                f"range, got {brief(item)}"
            )
        yield from range(low, high + 1)


def in_ranges(numbers: Iterable[int]) -> list[str]:
    """What ``expand`` reads, in short: 1, 4, 5, 6 as "1", "4-6"; in the order of ``numbers``."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return [f"{low}" if low == high else f"{low}-{high}" for low, high in ends]


def _range(item: object) -> tuple[int, int]:
    """The first and the last number of an item of ``expand``."""
    if isinstance(item, int) and not isinstance(item, bool) and item >= 0:
        return item, item
    digits = "[0-9]{1,20}"
    found = re.fullmatch(f"({digits})(?:-({digits}))?", item) if isinstance(item, str) else None
    if found is None:
        raise UserError(f'label numbers such as 44 or "49-52" were wanted, got {brief(item)}')
    low, high = found.groups()
    return int(low), int(high or low)


def inside(path: str) -> bool:
    """Does a relative path, by its words, stay in its folder? On Windows too, with its separators
    and drives.
    """
    parts = re.split(r"[/\\]", path)
    ends = parts[0] != "" and parts[-1] != ""  # neither absolute nor a folder's
    return path.isprintable() and ends and ":" not in parts[0] and ".." not in parts


# --- the table ------------------------------------------------------------------------------------


@cache
def manifest() -> dict[str, Entry]:
    """The data sets that the kit knows, by name."""
    if not places.MANIFEST.is_file():
        raise FileNotFoundError(
            f"{places.MANIFEST}: not found; install the project from its folder: pip install -e ."
        )
    return read_entries(places.MANIFEST)


def read_entries(path: Path) -> dict[str, Entry]:
    """The entries of a TOML file by name; UserError with a sentence for each mistake.

    An entry that is ``like`` another takes from that one what it does not say itself.
    """
    tables = _read_toml(path)
    entries = {}
    for name in tables:
        values = _with_what_it_is_like(name, tables, path)
        unknown = [key for key in values if key not in _KEYS]
        if unknown:
            said = "; ".join(_no_key(key, _KEYS) for key in unknown)
            raise UserError(f"{path}: {_as_written(name)}: {said}")
        try:
            entries[name] = Entry(**(values | {"name": name}))
        except ValidationError as error:
            said = "; ".join(_sentence(item) for item in error.errors())
            raise UserError(f"{path}: {_as_written(name)}: {said}") from None
    return entries


def _read_toml(path: Path) -> dict:
    try:
        return parsed_toml(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # a number may be too long, a list too deep
        raise UserError(f"{path}: not valid TOML ({error})") from error


def _with_what_it_is_like(name: str, tables: Mapping, path: Path) -> dict:
    own = tables[name]
    if not isinstance(own, dict):
        raise UserError(
            f"{path}: a table for each data set was wanted, got {_as_written(name)} = {brief(own)}"
        )
    own = dict(own)
    other = own.pop("like", None)
    if other is None:
        return own
    inherited = tables.get(other) if isinstance(other, str) else None
    if not isinstance(inherited, dict) or "like" in inherited:
        raise UserError(
            f"{path}: {_as_written(name)} is like {brief(other)}: another table of this file was "
            "wanted, which is not like one itself"
        )
    contents = {"anatomy", "structures", "regions"}
    if contents & own.keys():  # of these an entry has one
        inherited = {key: value for key, value in inherited.items() if key not in contents}
    return inherited | own


def _as_written(key: str) -> str:
    """A key as TOML writes it: in quotation marks, unless it is plain."""
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else brief(key)


def _sentence(item: Mapping) -> str:
    """One mistake, as pydantic describes it, in words."""
    parts = [str(part) for part in item["loc"]]
    if item["type"] == "extra_forbidden":
        return _no_key(".".join(parts), _KEYS)
    key = ".".join(map(_as_written, parts))
    if item["type"] == "missing":
        return f"{key} is missing"
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {text}" if key else text
    wanted = _WANTED.get(item["type"], text[0].lower() + text[1:])
    return f"{key}: {wanted}, got {brief(item['input'])}"


_WANTED = {  # pydantic's types of mistakes, in words of a TOML file
    "tuple_type": "a list was wanted",
    "dict_type": "a table was wanted",
    "model_type": "a table was wanted",
    "string_type": "text was wanted",
    "int_type": "a whole number was wanted",
    "float_type": "a number was wanted",
    "bool_type": "true or false was wanted",
    "too_long": "fewer items were wanted",
}


_OF_A_COHORT_FILE = ("scans", "home")
_KEYS = (
    *(key for key in Entry.model_fields if key not in ("name", *_OF_A_COHORT_FILE)),
    "like",
)


def _no_key(key: str, known: Sequence[str]) -> str:
    return f"there is no key {brief(key)}{meant(key, known)}"


# --- a cohort file --------------------------------------------------------------------------------

COHORT_KEYS = (
    "name",
    "title",
    "licence",
    "credit",
    "dims",
    "align",
    "structures",
    "empty_labels",
    "labelled_first",
    "channel",
    "grids",
    "scans",
)


def read_cohort(path: Path) -> Entry:
    """The entry in a cohort file: keys of COHORT_KEYS, and a table ``[[scans]]`` for each scan.

    What is left out: ``title`` is the name, ``licence`` "unknown", and a scan's ``subject`` its id.
    Raises FileNotFoundError, or UserError with a sentence for each mistake, which names the file,
    and the scan. Whether the scans' files are there is not looked at.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; a cohort file was wanted, as `deepatlas data check FOLDER` "
            "writes it"
        )
    content = _read_toml(path)
    said = [_no_key(key, COHORT_KEYS) for key in content if key not in COHORT_KEYS]
    tables = content.get("scans", [])
    if not isinstance(tables, list) or not tables:
        said.append(f"a table [[scans]] for each scan was wanted, got {brief(tables)}")
    else:
        for number, table in enumerate(tables, 1):
            said += _scan_mistakes(number, table)
    if said:
        raise UserError(f"{path}: {'; '.join(said)}")
    scans = [{"subject": table["id"], **table} for table in tables]
    values = {"title": content.get("name"), "licence": "unknown"} | content
    try:
        return Entry(**(values | {"scans": scans, "layout": "cohort", "home": path.parent}))
    except ValidationError as error:
        said = [_sentence(item) for item in error.errors() if _tells(item, content)]
        raise UserError(f"{path}: {'; '.join(said)}") from None


def _scan_mistakes(number: int, table: object) -> list[str]:
    """What is wrong with a table ``[[scans]]``, a sentence each."""
    if not isinstance(table, dict):
        return [f"a table [[scans]] for each scan was wanted, got {brief(table)}"]
    id = table.get("id")
    who = f"scan {brief(id)}" if isinstance(id, str) and id else f"[[scans]] number {number}"
    known = tuple(ScanFile.model_fields)
    unknown = [f"{who}: {_no_key(key, known)}" for key in table if key not in known]
    try:
        ScanFile.model_validate({"subject": id} | table)
    except ValidationError as error:
        found = []
        for item in error.errors():
            follows = item["loc"] == ("subject",) and "subject" not in table
            if item["type"] != "extra_forbidden" and not follows:
                found.append(f"{who}: {_sentence(item)}")
        return unknown + found
    return unknown


def _tells(item: Mapping, content: Mapping) -> bool:
    """Is a mistake one of its own? A title that is left out is as wrong as the name."""
    return item["loc"] != ("title",) or "title" in content


def cohort_file(dataset: str, folder: Path = Path()) -> Path | None:
    """The cohort file that ``dataset`` means, absolute: a path that ends in .toml, or a folder with
    a cohort.toml in it; None for a name of the kit's own. UserError if it is neither.

    A relative path begins in ``folder``, by default the current one.
    """
    if dataset in manifest():
        return None
    try:
        path = Path(os.path.abspath(folder / Path(dataset).expanduser()))
        is_folder = path.is_dir()
    except (RuntimeError, ValueError, OSError) as error:  # no such home; a name too long
        raise UserError(f"dataset = {brief(dataset)}: no path of a cohort file ({error})") from None
    if path.suffix == ".toml" and not is_folder:
        return path
    if not is_folder:
        hint = meant(dataset, manifest(), all_of_them=True)
        raise UserError(
            f"there is no cohort {brief(dataset)}{hint}; or name a cohort file, a path that ends "
            "in .toml, or the folder of a cohort.toml"
        )
    if not (path / COHORT_FILE).is_file():
        raise UserError(
            f"{dataset}: a folder without {COHORT_FILE}: run `deepatlas data check {dataset}` "
            f"first: it writes the {COHORT_FILE} that is wanted here"
        )
    return path / COHORT_FILE


def settled(dataset: str, folder: Path = Path()) -> str:
    """``dataset`` as it means the same in every folder: a name of the kit's own, or the absolute
    path of the cohort file, see ``cohort_file``.
    """
    path = cohort_file(dataset, folder)
    return dataset if path is None else str(path)


def describe(name: str) -> Entry:
    """What is said of the cohort ``name``: a name of the kit's own, or a cohort file, see
    ``cohort_file``.
    """
    path = cohort_file(name)
    return manifest()[name] if path is None else read_cohort(path)
