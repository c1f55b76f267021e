"""Mutated NIfTI headers: refused in a sentence, or read as the standard says, by a second reader.

The second reader knows the bytes of NIfTI-1 and NIfTI-2, and nothing of nibabel.
"""

import gzip
import math
import struct
import warnings
from collections import Counter

from deepatlas.datasets import read_nifti
from deepatlas.errors import UserError

import nibabel as nib
import numpy as np
import pytest
from fuzzing import cases, flipped, told
from scipy.spatial.transform import Rotation
from volumes import oblique, rng

# field -> (byte, format), of NIfTI-1 and NIfTI-2
FIELDS = {
    1: {
        "sizeof_hdr": (0, "i"),
        "dim": (40, "8h"),
        "datatype": (70, "h"),
        "bitpix": (72, "h"),
        "pixdim": (76, "8f"),
        "vox_offset": (108, "f"),
        "scl_slope": (112, "f"),
        "scl_inter": (116, "f"),
        "xyzt_units": (123, "B"),
        "cal_max": (124, "f"),
        "descrip": (148, "80s"),
        "qform_code": (252, "h"),
        "sform_code": (254, "h"),
        "quatern": (256, "3f"),
        "qoffset": (268, "3f"),
        "srow": (280, "12f"),
        "intent_name": (328, "16s"),
        "magic": (344, "4s"),
    },
    2: {
        "sizeof_hdr": (0, "i"),
        "magic": (4, "4s"),
        "datatype": (12, "h"),
        "bitpix": (14, "h"),
        "dim": (16, "8q"),
        "pixdim": (104, "8d"),
        "vox_offset": (168, "q"),
        "scl_slope": (176, "d"),
        "scl_inter": (184, "d"),
        "cal_max": (192, "d"),
        "descrip": (240, "80s"),
        "qform_code": (344, "i"),
        "sform_code": (348, "i"),
        "quatern": (352, "3d"),
        "qoffset": (376, "3d"),
        "srow": (400, "12d"),
        "xyzt_units": (500, "i"),
        "intent_name": (508, "16s"),
    },
}
SIZES = {1: 348, 2: 540}
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
TYPES |= {1024: "i8", 1280: "u8"}
UNITS = {0: 1, 1: 1000, 2: 1, 3: 0.001}
HARMLESS = {"bitpix", "cal_max", "descrip", "intent_name"}

SMALL = [0, 1, -1, 2, 3, 4, 5, 6, 7, 8, 16, 20, 255, 256, 512, 768, 1024, 1280, 1536, 2304, 32767]
WHOLE = [*SMALL, -32768, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1]
REAL = [0.0, 1.0, -1.0, 0.5, 2.0, 1e-3, 1000.0, 352.0, 348.0, 353.0, 352.5, -0.0, 1e-30, 1e30]
REAL += [-1e30, math.nan, math.inf, -math.inf, 1e-45, 3.4e38, 16777217.0]


def sound_files():
    """(version, byte order, bytes) of files of several shapes, types and ways to say a place."""
    files = []
    types = (np.uint8, np.int16, np.float32, np.float64, np.uint32)
    shapes = ((4, 5, 6), (7, 5), (4, 5, 6, 1), (4, 5, 1), (3, 4, 5, 1, 1))
    makers = {1: nib.Nifti1Image, 2: nib.Nifti2Image}
    for number, (version, order, form) in enumerate(
        (version, order, form)
        for version in (1, 2)
        for order in "<>"
        for form in ("sform", "qform", "both")
    ):
        shape, dtype = shapes[number % len(shapes)], types[number % len(types)]
        array = rng(number).integers(0, 200, shape).astype(dtype)
        image = makers[version](array, None, makers[version].header_class(endianness=order))
        image.set_data_dtype(dtype)
        if form != "qform":
            image.set_sform(oblique(), 1)
        if form != "sform":
            image.set_qform(oblique(), 1)
        files.append((version, order, image.to_bytes()))
    return files


def changed(raw, version, order, random):
    """(bytes, names of the fields that were changed)."""
    raw = bytearray(raw)
    names = []
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        name = random.choice([*FIELDS[version]])
        byte, code = FIELDS[version][name]
        values = list(struct.unpack_from(order + code, raw, byte))
        which = random.randrange(len(values))
        if isinstance(values[which], bytes):
            values[which] = random.randbytes(len(values[which]))
        elif isinstance(values[which], float):
            values[which] = random.choice(
                [*REAL, values[which] * random.choice([1.0001, 1.5, -1, 2])]
            )
        else:
            values[which] = random.choice([*WHOLE, values[which] + 1, values[which] - 1])
        try:
            packed = struct.pack(order + code, *values)
        except (struct.error, OverflowError):  # too large for this field
            continue
        raw[byte : byte + len(packed)] = packed
        names.append(name)
    return bytes(raw), names


class Refused(Exception):
    """What the second reader does not read either."""


def read_again(raw):
    """(voxels, affine, whether two places are told) of the bytes of a file."""
    for version, size in SIZES.items():
        for order in "<>":
            if len(raw) >= size and struct.unpack_from(f"{order}i", raw)[0] == size:
                return _read_again(raw, version, order)
    raise Refused("size of the header")


def _read_again(raw, version, order):
    told = {}
    for name, (byte, code) in FIELDS[version].items():
        values = struct.unpack_from(order + code, raw, byte)
        told[name] = values if len(values) > 1 else values[0]
    if told["magic"] != {1: b"n+1\0", 2: b"n+2\0"}[version]:
        raise Refused("magic")
    count, *sides = told["dim"]
    if not 2 <= count <= 7:
        raise Refused("number of sides")
    shape = sides[:count]
    if min(shape) < 1 or math.prod(shape[3:]) != 1 or told["datatype"] not in TYPES:
        raise Refused("shape or type")
    dtype = np.dtype(order + TYPES[told["datatype"]])
    begin = told["vox_offset"] or SIZES[version] + 4
    if begin + math.prod(shape) * dtype.itemsize != len(raw) or begin < SIZES[version] + 4:
        raise Refused("length")
    voxels = np.frombuffer(raw[int(begin) :], dtype).reshape(shape[:3], order="F")
    slope, intercept = told["scl_slope"], told["scl_inter"]
    if slope != 0 and not math.isnan(slope):
        if not math.isfinite(slope + intercept):
            raise Refused("slope")
        if (slope, intercept) != (1, 0):
            voxels = voxels.astype(np.float64) * slope + intercept
    unit = told["xyzt_units"] & 7
    if unit not in UNITS:
        raise Refused("unit")
    forms = []
    if told["sform_code"] > 0:
        rows = np.array(told["srow"]).reshape(3, 4)
        forms.append(np.vstack([UNITS[unit] * rows, [0, 0, 0, 1]]))
    if told["qform_code"] > 0:
        forms.append(_of_quaternion(told, UNITS[unit], flat=count == 2))
    if not forms:
        raise Refused("no place")
    affine = forms[0]
    if affine is None or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        raise Refused("affine")
    return voxels, affine, len(forms) == 2 and not _alike(forms, voxels.shape)


def _of_quaternion(told, unit, flat):
    b, c, d = told["quatern"]
    sign, *sides = told["pixdim"][:4]
    sides = [abs(side) for side in sides]
    if flat and sides[2] == 0:
        sides[2] = 1
    rest = 1 - (b * b + c * c + d * d)
    if not rest > -1e-6 or sign not in (-1, 0, 1) or not min(sides) >= 0:
        return None
    turn = Rotation.from_quat([b, c, d, math.sqrt(max(rest, 0))]).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([sides[0], sides[1], sides[2] * (sign or 1)])
    affine[:3, 3] = told["qoffset"]
    affine[:3] *= unit
    return affine


def _alike(forms, shape):
    """Whether two affines put all voxels, to a tenth of one, in one place."""
    if forms[1] is None or not np.isfinite(forms[1]).all():
        return False
    indices = _indices(shape)
    apart = np.linalg.inv(forms[0]) @ forms[1] @ indices - indices
    return np.linalg.norm(apart, axis=0).max() <= 0.1


def _indices(shape):
    """(4, voxels), homogeneous, in C order."""
    flat = np.indices((*shape, 1)[:3]).reshape(3, -1)
    return np.vstack([flat, np.ones(flat.shape[1])])


def check(found, affine, voxels, wanted):
    """Each voxel of the file is found in its place, with its number."""
    indices = _indices(voxels.shape)
    seen = np.linalg.inv(affine) @ wanted @ indices
    whole = np.rint(seen[:3]).astype(int)
    np.testing.assert_allclose(seen[:3], whole, atol=1e-3)
    assert sorted(found.shape) == sorted(voxels.shape)
    at = tuple(whole[: found.ndim])
    assert all(axis.min() >= 0 for axis in at)
    np.testing.assert_array_equal(found[at], voxels.ravel())


def mutated(raw, version, order, random):
    """(bytes, names of the fields that were changed, or "bits")."""
    if random.random() < 0.75:
        return changed(raw, version, order, random)
    size = SIZES[version]
    return flipped(raw[:size], random, random.choice([1, 1, 2, 8])) + raw[size:], ["bits"]


def test_a_mutated_header_is_refused_or_read_as_the_standard_says(tmp_path):
    files = sound_files()
    kinds = Counter()
    for number, random in cases(2500):
        version, order, raw = random.choice(files)
        raw, names = mutated(raw, version, order, random)
        path = tmp_path / random.choice(["a.nii", "a.nii.gz"])
        path.write_bytes(gzip.compress(raw, 1) if path.suffix == ".gz" else raw)
        with told(number, f"NIfTI-{version} {order} {names}"):
            kinds[tried(path, raw, names)] += 1
    print(dict(kinds))


def tried(path, raw, names):
    """How one case ended, well."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found, affine, _ = read_nifti(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            assert not HARMLESS.issuperset(names), str(error)
            if "beyond a kilometre" not in str(error):  # a bound of the kit's own
                with np.errstate(all="ignore"), pytest.raises(Refused):
                    read_again(raw)
            return "refused"
    with np.errstate(all="ignore"):
        voxels, wanted, two_places = read_again(raw)
    check(found, affine, voxels, wanted)
    remarks = [str(warning.message) for warning in said]
    if not two_places:
        assert remarks == []
        return "read"
    assert len(remarks) == 1 and "; the sform is taken" in remarks[0]
    return "read, two places"
