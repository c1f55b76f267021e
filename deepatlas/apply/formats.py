"""Files that other programs read: labels with names and colours on a file's own grid; warps for
ITK, ANTs, Slicer, ITK-SNAP and for Learn2Reg.

A warp of the kit is in voxels of two resampled, perhaps aligned scans. Other programs know the two
files alone. With y a voxel of the fixed file, S_f and S_m the affines of the files, A_f and A_m
those of the scans, all to millimetres RAS+, and L = diag(-1, -1, 1), which turns RAS to LPS:

    x = A_f^-1 S_f y         voxel of the fixed scan
    q = x + u(x)             voxel of the moving scan
    d = L (A_m q - S_f y)    millimetres LPS: what an ITK file holds at y
    p = S_m^-1 A_m q         voxel of the moving file: warped(y) = moving(p)
    v = p - y                voxels: what a Learn2Reg file holds at y
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from .. import checkpoints
from ..data import Scan
from ..datasets.grid import volume_sides
from ..datasets.layouts.files import without_ending
from ..datasets.nifti import ELSEWHERE, affine_of, read_header, read_stored
from ..errors import UserError, brief, shortened
from ..warp import Deformation, voxel_grid

Structures = Mapping[str, Sequence[int]]  # name -> the numbers that mean it in files of labels

SNAP_TABLE, SLICER_TABLE = "labels.label.txt", "labels.ctbl"
VECTORS = 1007  # NIfTI's code of an image of vectors, which ITK takes as LPS
TWICE = b"one plane, written twice"  # in the header of a warp of a file one voxel thick
SLAB = 2**20  # voxels whose coordinates are in memory at once
SHEAR = 1e-4  # cosine of the angle between two axes, up to which ITK takes a grid for rectangular
TILTED = 0.01  # millimetres that a plane may lead out of itself, beside a shift of the whole
LEVEL = 3  # of gzip: displacements hardly shrink, whatever the effort
SIGNS = np.array([-1.0, -1.0, 1.0])  # RAS <-> LPS

# What a header says of place: all that a file of labels shares with its image.
PLACE = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


def check_free(path: Path, force: bool) -> None:
    """UserError if ``path`` is there already, unless ``force``."""
    if path.exists() and not force:
        raise UserError(
            f"{path}: is there already: name another place, or write over it with force=True "
            "(--force)"
        )


# --- labels ---------------------------------------------------------------------------------------


def write_labels(array: np.ndarray, like: str | Path, to: Path, dtype: str = "") -> Path:
    """A NIfTI file of label numbers on the grid of the file ``like``, whose sform, qform, codes,
    unit and voxel sizes it keeps as they stand.

    ``array``: integers (I, J, K), along the file's own axes, also of one that holds several images.
    ``dtype``: "uint8", say; by default the smallest that holds them. UserError if it cannot hold
    them exactly.
    """
    like = Path(like)
    own, shape = read_header(like, single=False)
    if array.shape[:3] != shape[:3] or array.size != np.prod(shape[:3]):
        raise ValueError(f"labels of {array.shape} voxels do not lie on {like}, which has {shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {array.dtype}")
    header = type(own)()
    for field in PLACE:
        header[field] = own[field]
    header.set_intent("label")
    numbers = exactly(array, dtype or smallest_dtype(array), str(to))
    stored = shape if numbers.size == np.prod(shape) else shape[:3]  # of several images, one
    _write(header, numbers.reshape(stored), to)
    return to


def smallest_dtype(numbers: np.ndarray) -> str:
    """The name of the smallest integer type that holds all of ``numbers``."""
    least, most = int(numbers.min()), int(numbers.max())
    for name in ("uint8", "int16", "int32", "int64"):
        limits = np.iinfo(name)
        if limits.min <= least and most <= limits.max:
            return name
    return "uint64"


def exactly(numbers: np.ndarray, dtype: str | np.dtype, name: str) -> np.ndarray:
    """Integers as ``dtype``; UserError, which says ``name``, if it holds one of them as another."""
    wanted = np.dtype(dtype)
    if wanted.kind == "f":
        highest = 2 ** (np.finfo(wanted).nmant + 1)
        lowest = -highest
    else:
        lowest, highest = np.iinfo(wanted).min, np.iinfo(wanted).max
    least, most = int(numbers.min()), int(numbers.max())
    if least < lowest or most > highest:
        raise UserError(f"{name}: labels from {least} to {most} do not fit into {wanted}")
    return numbers.astype(wanted)


def write_sidecar(structures: Structures, to: Path, about: Mapping[str, object]) -> None:
    """JSON beside a file of labels: which numbers mean which structure, and what else is known
    ``about`` them.
    """
    numbers = {name: [int(number) for number in some] for name, some in structures.items()}
    checkpoints.write_json({"structures": numbers, **about}, to)


def read_sidecar(path: Path) -> dict[str, tuple[int, ...]]:
    """What ``write_sidecar`` says of the structures: name -> numbers.

    A JSON file of nothing but {"name": number or [numbers]} is one, too. UserError for another.
    """
    content = checkpoints.read_json(path)
    if isinstance(content, dict):
        content = content.get("structures", content)
    wanted = 'names and numbers were wanted, as in {"structures": {"hippocampus": [17, 53]}}'
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: {wanted}, got {brief(content)}")
    found = {}
    for name, some in content.items():
        numbers = some if isinstance(some, list) else [some]
        whole = [isinstance(number, int) and not isinstance(number, bool) for number in numbers]
        if not numbers or not all(whole) or not name.isprintable():
            raise UserError(f"{path}: {wanted}, got {brief({name: some})}")
        found[name] = tuple(numbers)
    return found


def write_colours(structures: Structures, folder: str | Path, *, force: bool = False) -> list[Path]:
    """Names and colours, those of the kit's figures and viewers, of ``structures`` (all but the
    background), as tables for two programs.

    labels.label.txt is ITK-SNAP's (Segmentation > Import label descriptions), labels.ctbl Slicer's
    (Add data). All segmentations in a folder share them. UserError if others are there already,
    unless ``force``.
    """
    from .. import plots  # a machine that only trains has no matplotlib

    colours = plots.colour_bytes(len(structures) + 1)[1:]
    snap = ["# IDX -R- -G- -B- -A- VIS MESH LABEL"]
    snap.append('    0    0    0    0    0    0    0    "Clear Label"')
    slicer = ["# Color table file: number name R G B A", "0 background 0 0 0 0"]
    for (name, some), (red, green, blue) in zip(structures.items(), colours, strict=True):
        shown = shortened(name).replace('"', "'")
        for number in some:
            snap.append(f'{number:5} {red:4} {green:4} {blue:4}    1    1    1    "{shown}"')
            slicer.append(f"{number} {'_'.join(shown.split())} {red} {green} {blue} 255")
    lines = {Path(folder) / SNAP_TABLE: snap, Path(folder) / SLICER_TABLE: slicer}
    texts = {path: "\n".join(some) + "\n" for path, some in lines.items()}
    for path, text in texts.items():
        if path.is_file() and not force and path.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{path}: is there already, with the colours of other structures: name another "
                "folder, or write over it with force=True (--force)"
            )
    for path, text in texts.items():
        checkpoints.write_text(text, path)
    return list(texts)


# --- warps ----------------------------------------------------------------------------------------


def lps_displacement(phi: Deformation, moving: Scan, fixed: Scan) -> np.ndarray:
    """d = L (A_m phi(x) - S_f y) at each voxel y of the fixed FILE: (I, J, K, 3) float32, in
    millimetres LPS; of a file of two axes (I, J, 2).

    UserError if a registration of planes is to warp a volume.
    """
    if moving.source is None or fixed.source is None:
        raise UserError(
            f"{moving.id} to {fixed.id}: a warp for other programs leads from file to file, and "
            "scans that were read from files were wanted"
        )
    if phi.shape != fixed.shape or len(phi.displacement) != 1:
        raise ValueError(
            f"one deformation of the fixed scan's {fixed.shape} voxels was wanted, got "
            f"{tuple(phi.displacement.shape)}"
        )
    phi = Deformation(phi.displacement.detach().cpu())
    dims = len(phi.shape)
    to_scan = torch.linalg.inv(fixed.to_source)
    shape = fixed.source.shape[:3]
    displacement = np.empty((*volume_sides(shape), 3), np.float32)
    for slab, y in slabs(volume_sides(shape)):
        x = moved(to_scan, y)
        if dims == 2 and x[2].abs().max() > ELSEWHERE:
            raise UserError(
                f"{fixed.source.path}: is a volume, and one plane of it was registered: a warp of "
                "a volume needs a network of three dimensions"
            )
        q = phi(x[None, :dims])[0]
        if dims == 2:
            q = torch.cat([q, torch.zeros_like(x[:1])])
        millimetres = moved(moving.affine, q) - moved(fixed.source.affine, y)
        displacement[slab] = millimetres.movedim(0, -1).numpy() * SIGNS
    return _in_plane(displacement, fixed.source.path)[:, :, 0] if len(shape) == 2 else displacement


def _in_plane(displacement: np.ndarray, path: str) -> np.ndarray:
    """(I, J, 1, 2) of (I, J, 1, 3): of a plane's displacements those that ITK takes, x and y.

    UserError if the moving image is tilted: then these alone would lead elsewhere.
    """
    across = displacement[..., 2]
    if across.max() - across.min() > TILTED:
        raise UserError(
            f"{path}: the moving image lies in a plane that is tilted against this one's, and of "
            "files of two axes ITK knows x and y alone: store both as volumes one voxel thick"
        )
    return displacement[..., :2]


def slabs(shape: tuple[int, ...]) -> Iterator[tuple[slice, Tensor]]:
    """Parts of a grid along its first axis, each with its voxels' coordinates (D, i, J, K)."""
    rows = max(1, SLAB // int(np.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        grid = voxel_grid((stop - start, *shape[1:]), torch.zeros((), dtype=torch.float64))
        grid[0] += start
        yield slice(start, stop), grid


def moved(affine: Tensor, points: Tensor) -> Tensor:
    """(D, ...) points through the affine (D + 1, D + 1)."""
    shift = affine[:-1, -1].view(-1, *[1] * (points.ndim - 1))
    return torch.einsum("ij,j...->i...", affine[:-1, :-1], points) + shift


def write_itk(displacement: np.ndarray, fixed_file: str | Path, to: Path) -> Path:
    """A warp for ITK, ANTs, Slicer and ITK-SNAP: NIfTI (I, J, K, 1, 3) float32 of intent 1007 on
    the grid of the fixed file, sform and qform alike.

    Of a file whose third axis is one voxel thick the warp is two thick, both alike: of one, ITK
    drops the axis, and where it lies.

    ``displacement``: what ``lps_displacement`` gives. UserError if the file's grid is one that ITK
    does not know.
    """
    fixed_file = Path(fixed_file)
    header, shape = read_header(fixed_file, single=False)
    if displacement.shape[:-1] != shape[:3]:
        raise ValueError(
            f"displacements {displacement.shape} do not lie on {fixed_file}, which has {shape}"
        )
    affine = affine_of(header, shape[:3], fixed_file)
    _check_that_itk_knows(affine, fixed_file, flat=len(shape) == 2)
    new = _header_at(affine)
    new.set_intent(VECTORS)
    vectors = displacement.reshape(*volume_sides(shape), 1, displacement.shape[-1])
    if len(shape) > 2 and shape[2] == 1:
        vectors = np.repeat(vectors, 2, axis=2)
        new["descrip"] = TWICE
    _write(new, vectors.astype(np.float32, copy=False), to)
    return to


def _check_that_itk_knows(affine: np.ndarray, path: Path, flat: bool) -> None:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR:
        raise UserError(
            f"{path}: its voxels are sheared, and ITK knows only rectangular ones: resample the "
            "image to such a grid, or write the warp for Learn2Reg"
        )
    if flat and np.abs(axes[2, :2]).max() > SHEAR:
        raise UserError(
            f"{path}: its plane is not axial, and of an image of two axes ITK reads only where it "
            "lies in x and y: store it as a volume one voxel thick"
        )


def _header_at(affine: np.ndarray) -> nib.Nifti1Header:
    """A header that tells of a grid, in millimetres, by sform and qform."""
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    return header


@dataclass(frozen=True, eq=False)
class Warp:
    """A displacement field of ITK."""

    path: Path
    displacement: np.ndarray  # (I, J, K, 3) float32, millimetres LPS; of a plane (I, J, 2)
    affine: np.ndarray  # (4, 4) voxel of the field -> world millimetres, RAS+

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis of the grid that the warp leads from."""
        return self.displacement.shape[:-1]


def read_warp(path: str | Path) -> Warp:
    """A warp in the form that ITK, ANTs and ``write_itk`` write; UserError for another.

    ANTs says nothing of a file in another form: it applies none, and hands the image back.
    """
    path = Path(path)
    header, array = read_stored(path)
    wanted = (
        "a warp of ITK or ANTs was wanted, NIfTI of shape (I, J, K, 1, 3) and intent 1007, vectors "
        "in millimetres LPS"
    )
    # of a plane (I, J, 1, 1, 2)
    flat = array.shape[2:] == (1, 1, 2)
    if array.ndim != 5 or not (flat or array.shape[3:] == (1, 3)):
        raise UserError(
            f"{path}: {wanted}, got the shape {array.shape}; warps of four axes are those of FSL "
            "and Learn2Reg"
        )
    code = int(header["intent_code"])
    if code != VECTORS:
        told = {0: "none", 1006: "1006, vectors in RAS"}.get(code, str(code))
        raise UserError(
            f"{path}: {wanted}, and its intent is {told}: programs of ITK would not take it as "
            "such a warp; write it anew with the program that made it"
        )
    if not np.isfinite(array).all():
        raise UserError(
            f"{path}: {np.count_nonzero(~np.isfinite(array))} of its numbers are NaN or infinite: "
            "look at the registration that made it"
        )
    vectors = array[:, :, 0, 0] if flat else array[:, :, :, 0]
    affine = affine_of(header, vectors.shape[:-1], path)
    if not flat and vectors.shape[2] == 2 and header["descrip"].item() == TWICE:
        vectors = vectors[:, :, :1]
    return Warp(path, vectors.astype(np.float32), affine)


def write_learn2reg(
    displacement: np.ndarray, fixed_file: str | Path, moving_file: str | Path, to: Path
) -> Path:
    """A warp as Learn2Reg stores it: v = p - y, (I, J, K, 3) float32 in voxels of the two files as
    they are stored; .npz (one array) or .nii.gz, by the name ``to``.

    ``displacement``: what ``lps_displacement`` gives. UserError for files of two axes.
    """
    fixed_file, moving_file = Path(fixed_file), Path(moving_file)
    header, shape = read_header(fixed_file, single=False)
    if len(shape) == 2:
        raise UserError(f"{fixed_file}: has two axes, and a warp of Learn2Reg is one of volumes")
    of_fixed = affine_of(header, shape[:3], fixed_file)
    moving_header, moving_shape = read_header(moving_file, single=False)
    of_moving = affine_of(moving_header, moving_shape[:3], moving_file)
    into_moving = torch.from_numpy(np.linalg.inv(of_moving))
    voxels = np.empty(displacement.shape, np.float32)
    for slab, y in slabs(displacement.shape[:-1]):
        millimetres = torch.from_numpy(displacement[slab] * SIGNS).movedim(-1, 0)
        p = moved(into_moving, moved(torch.from_numpy(of_fixed), y) + millimetres)
        voxels[slab] = (p - y).movedim(0, -1).numpy()
    if to.suffix == ".npz":
        content = io.BytesIO()
        np.savez_compressed(content, voxels)
        checkpoints.write_atomically(to, lambda file: file.write_bytes(content.getbuffer()))
    else:
        _write(_header_at(of_fixed), voxels, to)
    return to


def learn2reg_name(fixed_file: str | Path, moving_file: str | Path) -> str:
    """disp_<fixed>_<modality>_<moving>_<modality>, without an ending.

    Of OASIS_0438_0000.nii.gz 0438 is the case, 0000 the modality; other names are the case
    themselves, and their modality is 0000.
    """
    parts: list[str] = []
    for path in (fixed_file, moving_file):
        stem = without_ending(Path(path).name)
        found = re.search(r"(?:^|_)(\d{4})_(\d{4})$", stem)
        parts += found.groups() if found else (stem, "0000")
    return "_".join(["disp", *parts])


# --- images ---------------------------------------------------------------------------------------


def write_image(array: np.ndarray, affine: np.ndarray, to: Path) -> Path:
    """A NIfTI file of ``array``, in its own type, at ``affine`` (voxel -> millimetres, RAS+)."""
    _write(_header_at(affine), array, to)
    return to


def _write(header: nib.Nifti1Header, array: np.ndarray, to: Path) -> None:
    """``array`` behind ``header``, in one file, never half-written; the same bytes each time."""
    if not to.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{to}: a name that ends in .nii or .nii.gz was wanted")
    if header.get_data_shape() != array.shape:  # it forgets the sides of axes beyond
        header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    no_extension = bytes(4)
    content = header.binaryblock + no_extension + array.tobytes(order="F")
    if to.suffix == ".gz":
        content = gzip.compress(content, LEVEL, mtime=0)
    checkpoints.write_atomically(to, lambda file: file.write_bytes(content))
