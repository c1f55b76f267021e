"""What is said of a data set: a table of ``datasets.toml``, checked, as an ``Entry``.

The kit's own tables are those of ``tutorials_data/datasets.toml``. A new data set is one table
more: title, licence, split, one grid, and what is in it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from .. import places
from ..errors import UserError, meant
from ..phantom import anatomy_of
from .grid import check_sides

PROFILES = ("smoke", "class", "full")  # from the smallest to the largest
GRIDS = tuple(f"{profile}-{dims}d" for profile in PROFILES for dims in (2, 3))
SMOKE_SIDE = 24  # voxels, at most, where a grid for smoke is derived

Profile = Literal["smoke", "class", "full"]
Sizes = tuple[int, int, int]  # scans for train, validation, test


class Grid(BaseModel):
    """Voxels along each axis, and the millimetres from one to the next."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shape: tuple[int, ...]
    spacing: float = Field(gt=0)


class Entry(BaseModel):
    """What is said of one data set; frozen plain values, so a run can keep them as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    title: str
    licence: str
    credit: str = ""  # whose it is, as they want it said
    dims: Literal[2, 3] = 3  # what an experiment takes if it is not told: slices or volumes
    align: bool = False  # an affine alignment of the images to one training scan
    split: dict[str, Sizes]
    grids: dict[str, Grid]

    # what is in it: one of three
    anatomy: str | None = None  # phantoms: a name in ``phantom.ANATOMIES``
    # files: name and label numbers, merged; "a-b" is a range
    structures: tuple[tuple[str, tuple[int | str, ...]], ...] | None = None
    regions: tuple[int, int] | None = None  # files: label numbers from a to b, named in the folder

    # where its files are
    folder: str | None = None  # by default ``name``
    url: str | None = None  # of a tar archive
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    # --- checks ---

    @field_validator("split", mode="before")
    @classmethod
    def _one_for_all(cls, split: object) -> object:
        """One list of sizes serves all profiles."""
        if isinstance(split, list | tuple):
            return dict.fromkeys(PROFILES, split)
        return split

    @field_validator("split")
    @classmethod
    def _check_split(cls, split: dict[str, Sizes]) -> dict[str, Sizes]:
        known = (*PROFILES, "published")
        if not split:
            raise ValueError(f"sizes for one of {', '.join(known)} were wanted")
        for key, sizes in split.items():
            if key not in known:
                raise ValueError(f"there is no profile {key!r}: choose from {', '.join(known)}")
            if min(sizes) < 0 or sizes[0] < 1:
                raise ValueError(
                    "numbers of scans for train, validation and test were wanted, at least one "
                    f"for train, got {list(sizes)}"
                )
        return split

    @field_validator("grids")
    @classmethod
    def _check_grids(cls, grids: dict[str, Grid]) -> dict[str, Grid]:
        for key, grid in grids.items():
            if key not in GRIDS:
                raise ValueError(f"there is no grid {key!r}: choose from {', '.join(GRIDS)}")
            check_sides(grid.shape, 8)
            dims = int(key[-2])
            if len(grid.shape) != dims:
                raise ValueError(f"{key} wants {dims} sides, got {list(grid.shape)}")
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
        for name, numbers in structures or ():
            if not list(expand(numbers)):
                raise ValueError(f"{name!r} has no label number")
        return structures

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
        if self.url is not None and self.sha256 is None:
            raise ValueError("a url wants the sha256 of what is fetched there")
        return self

    # --- what it says of a profile ---

    @property
    def folder_name(self) -> str:
        """The folder of its files, in the folder of all data."""
        return self.folder or self.name

    def split_sizes(self, profile: Profile) -> list[int]:
        """Scans for train, validation and test.

        A published split is that of every profile. A profile of which ``split`` says nothing takes
        the sizes of the next larger one that it names, or else of the largest.
        """
        if "published" in self.split:
            return list(self.split["published"])
        larger = PROFILES[PROFILES.index(profile) :]
        smaller = reversed(PROFILES[: PROFILES.index(profile)])
        for key in (*larger, *smaller):
            if key in self.split:
                return list(self.split[key])
        raise AssertionError("an entry has a split")

    def grid(self, profile: Profile, dims: int) -> tuple[tuple[int, ...], float]:
        """(shape in voxels, spacing in mm) of a profile.

        What ``grids`` does not say follows from full-3d. class: twice its spacing. smoke: that
        spacing again, or the one at which the longest side has 24 voxels, if it is larger. Sides
        are rounded up to multiples of 8, and are 16 at least. 2D: the first two sides of the 3D
        grid.
        """
        said = self.grids.get(f"{profile}-{dims}d")
        if said is not None:
            return said.shape, said.spacing
        if dims == 2:
            shape, spacing = self.grid(profile, 3)
            return shape[:2], spacing
        full = self.grids.get("full-3d")
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


def _rounded_up(side: float) -> int:
    """The next multiple of 8, at least 16; the last bits of a division do not count."""
    return max(16, 8 * math.ceil(round(side / 8, 6)))


def expand(numbers: Sequence[int | str]) -> Iterator[int]:
    """The label numbers of a structure one by one: 44 is itself, and "49-52" a range."""
    for item in numbers:
        low, _, high = str(item).partition("-")
        high = high or low
        if not (low.isdigit() and high.isdigit()):
            raise UserError(f'label numbers such as 44 or "49-52" were wanted, got {item!r}')
        yield from range(int(low), int(high) + 1)


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
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})") from error
    entries = {}
    for name in tables:
        values = _with_what_it_is_like(name, tables, path)
        try:
            entries[name] = Entry(**(values | {"name": name}))
        except ValidationError as error:
            said = "; ".join(_sentence(item) for item in error.errors())
            raise UserError(f"{path}: {name}: {said}") from None
    return entries


def _with_what_it_is_like(name: str, tables: Mapping, path: Path) -> dict:
    own = tables[name]
    if not isinstance(own, dict):
        raise UserError(f"{path}: a table for each data set was wanted, got {name} = {own!r}")
    own = dict(own)
    other = own.pop("like", None)
    if other is None:
        return own
    inherited = tables.get(other)
    if not isinstance(inherited, dict) or "like" in inherited:
        raise UserError(
            f"{path}: {name} is like {other!r}: another table of this file was wanted, which is "
            "not like one itself"
        )
    contents = {"anatomy", "structures", "regions"}
    if contents & own.keys():  # of these an entry has one
        inherited = {key: value for key, value in inherited.items() if key not in contents}
    return inherited | own


def _sentence(item: Mapping) -> str:
    """One mistake, as pydantic describes it, in words."""
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"there is no key {key!r}{meant(key, _KEYS)}"
    if item["type"] == "missing":
        return f"{key} is missing"
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {text}" if key else text
    return f"{key}: {text[0].lower()}{text[1:]}, got {item['input']!r}"


_KEYS = (*(key for key in Entry.model_fields if key != "name"), "like")


def describe(name: str) -> Entry:
    """What is said of the cohort ``name``; UserError with the names there are if it is unknown."""
    if name not in manifest():
        hint = meant(name, manifest(), all_of_them=True)
        raise UserError(f"there is no cohort {name!r}{hint}")
    return manifest()[name]
