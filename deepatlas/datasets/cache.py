"""Scans on their common grid, kept once on disk and mapped into memory from there: a cohort may be
larger than the memory of the machine.

A file of the cache never changes: its name is a hash of all that decides what is in it. It holds a
line with the checksum of its header, the header, and the voxels of image and labels as they are in
memory. Its folder, or a part of it, may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

import nibabel as nib
import numpy as np
import scipy
import torch
from torch import Tensor

from ..checkpoints import sha256_of, write_atomically
from ..data import Scan, Source
from ..errors import UserError
from ..places import cache_folder
from ..run_names import code_hash
from .layouts import File

FORMAT = "deepatlas-scan-1"
FIRST_LINE = "{format} {checksum:64} {length:12d}\n"  # checksum and length of the header
BEGIN = 64  # voxels begin at a multiple of so many bytes
# from files to a scan on the grid, and from nothing to a phantom
OF_FILES = ("datasets/nifti.py", "datasets/preparation.py")
OF_PHANTOMS = ("phantom/subjects.py",)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan on the common grid, and what is to be known of the files that it was made from."""

    scan: Scan
    flat: bool = False  # were they single slices?
    found: tuple[int, ...] = ()  # the structures in its labels, as they were read
    shown: tuple[int, ...] = ()  # those that are left on the grid
    numbers: str = ""  # the integer type of the label numbers, as NumPy calls it
    told: tuple[str, ...] = ()  # warnings that came while the files were read


class Names(NamedTuple):
    """What a scan is called, which its files may be without being others."""

    id: str
    subject: str
    path: str = ""  # of its image; "" if it was made

    @classmethod
    def of(cls, scan: Scan) -> Names:
        """Those of a scan that is there already."""
        return cls(scan.id, scan.subject, scan.source.path if scan.source else "")


class Cache:
    """The folder of scans that files of ``code`` prepare or make; ``trouble`` says why one could
    not be kept, if so.
    """

    def __init__(self, code: Sequence[str] = OF_FILES) -> None:
        self.folder = cache_folder() / "scans"
        self.trouble: str | None = None
        self._decides = {
            "code": [code_hash(file) for file in code],
            "versions": [library.__version__ for library in (torch, np, scipy, nib)],
        }

    def key_of(self, decides: Mapping[str, object]) -> str:
        """The name under which a scan is kept: a hash of the code that prepares it, and of what
        else ``decides`` the result, as JSON.
        """
        told = json.dumps({**self._decides, **decides}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def find(self, key: str, names: Names) -> Prepared | None:
        """The scan that is kept under ``key``, mapped into memory, with these ``names``; None if
        there is none, or if it is damaged.
        """
        try:
            return _read(self.folder / key, names)
        # whatever a damaged file makes of the reader, and RuntimeError where none can be mapped
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            return None

    def keep(self, key: str, prepared: Prepared) -> Prepared:
        """Write ``prepared`` under ``key``, and give it back mapped into memory; or as it is, where
        it cannot be written.
        """
        if self.trouble is not None:
            return prepared
        problem = "it cannot be mapped into memory"
        try:
            write_atomically(self.folder / key, lambda path: _write(prepared, path))
        except (OSError, UserError) as error:
            problem = str(error)
        # even then: on Windows no file can be replaced that another process has mapped
        kept = self.find(key, Names.of(prepared.scan))
        if kept is None:
            self.trouble = problem
            return prepared
        return kept


def content_of(file: File) -> dict[str, object]:
    """What of the files of a scan decides how it is prepared: their bytes, as hashes."""
    return {
        "image": sha256_of(file.image),
        "channel": file.channel,
        "labels": None if file.labels is None else sha256_of(file.labels),
    }


# --- one file -------------------------------------------------------------------------------------


def _write(prepared: Prepared, path: Path) -> None:
    scan = prepared.scan
    labels = b"" if scan.labels is None else scan.labels.contiguous().numpy().data
    header = {
        "shape": scan.shape,
        "labels": None if scan.labels is None else str(scan.labels.numpy().dtype),
        "affine": scan.affine.tolist(),
        "source": None if scan.source is None else _told(scan.source),
        "flat": prepared.flat,
        "found": prepared.found,
        "shown": prepared.shown,
        "numbers": prepared.numbers,
        # a folder may be moved
        "told": [text.replace(Names.of(scan).path, "{image}") for text in prepared.told],
    }
    text = json.dumps(header).encode()
    checksum = hashlib.sha256(text).hexdigest()
    first = FIRST_LINE.format(format=FORMAT, checksum=checksum, length=len(text)).encode()
    with path.open("wb") as stream:
        for part in (first + text, scan.image.contiguous().numpy().data, labels):
            stream.write(part)
            stream.write(bytes(-stream.tell() % BEGIN))


class _Told(TypedDict):
    """A ``Source`` in JSON, without its path."""

    shape: Sequence[int]
    affine: list[list[float]]
    digest: str
    image_digest: str
    step: float


def _told(source: Source) -> _Told:
    return {
        "shape": source.shape,
        "affine": source.affine.tolist(),
        "digest": source.digest,
        "image_digest": source.image_digest,
        "step": source.step,
    }


def _source(told: _Told | None, path: str) -> Source | None:
    if told is None:
        return None
    return Source(
        path,
        tuple(told["shape"]),
        _affine(told["affine"]),
        told["digest"],
        told["image_digest"],
        told["step"],
    )


def _read(path: Path, names: Names) -> Prepared:
    """What ``_write`` wrote; ValueError if its header is damaged, or its size another."""
    first_line = len(FIRST_LINE.format(format=FORMAT, checksum="", length=0))
    whole = path.stat().st_size
    with path.open("rb") as stream:
        kind, checksum, length = stream.read(first_line).decode().split()
        text = stream.read(min(int(length), whole))
    if kind != FORMAT or hashlib.sha256(text).hexdigest() != checksum:
        raise ValueError(f"{path}: its header is damaged")
    header = json.loads(text)
    begin = _padded(first_line + len(text))
    shape = header["shape"]
    size = math.prod(shape)
    labels_begin = begin + _padded(4 * size)
    end = labels_begin
    if header["labels"] is not None:
        dtype = np.dtype(header["labels"])
        end += _padded(dtype.itemsize * size)
    if whole != end:
        raise ValueError(f"{path}: {end} bytes were wanted, got {whole}")

    # private: who changes a voxel changes it in memory, not in the file
    content = torch.UntypedStorage.from_file(str(path), False, end)
    image = _tensor(content[begin : begin + 4 * size], torch.float32, [1, *shape])
    labels = None
    if header["labels"] is not None:
        part = content[labels_begin : labels_begin + dtype.itemsize * size]
        labels = _tensor(part, getattr(torch, dtype.name), shape)
    source = _source(header["source"], names.path)
    scan = Scan(names.id, names.subject, image, _affine(header["affine"]), labels, source)
    return Prepared(
        scan,
        header["flat"],
        tuple(header["found"]),
        tuple(header["shown"]),
        header["numbers"],
        tuple(text.replace("{image}", names.path) for text in header["told"]),
    )


def _tensor(part: torch.UntypedStorage, dtype: torch.dtype, shape: list[int]) -> Tensor:
    """A tensor of its own in a part of a file: saved, it takes along nothing that is beside it."""
    # the stubs want a stride, which is optional
    return torch.empty(0, dtype=dtype).set_(part, 0, shape)  # type: ignore[call-overload]


def _padded(size: int) -> int:
    return size + -size % BEGIN


def _affine(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
