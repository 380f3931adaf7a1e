"""Feed mutated files to every reader: `python tools/fuzz_readers.py --inputs 100000`.

Small valid files of each kind are made here, then changed: bits, bytes, numbers, lengths, cuts, splices, and by kind
header fields, cards, chunks, members and opcodes, with corrected checksums, so that readers do not stop at those.
A worker process with at most 1 GB of memory reads each file and prepares the image for a model, within 2 s of CPU time.
The reader must accept it or refuse it with one sentence. Anything else is a finding: another exception, a message of
several lines, too much time or memory, a crash, a file opened besides the input, a process or connection started, a
class looked up for unpickling. Masks, noise maps, PSFs, files and folders of observations are read by `darklens fit`
beside valid ones; lists of files, index.csv and scenes in YAML are expanded and checked, but nothing that they name is
opened outside the folder. Of populations that are accepted, with a scene or without, and of images as their PSF, a few
lenses are drawn and observed, which must be finite. Contracts of bundles are read with weights beside them. The lens is
searched in two of a thousand images only, since that takes a second.
Findings are written to --keep. The same --seed gives the same inputs.

Writes results/fuzz.json; --first continues an earlier run and adds to its counts.
"""

import argparse
import base64
import bz2
import codecs
import copy
import gzip
import io
import json
import math
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
CPU_SECONDS, MEMORY, WALL_SECONDS = 2.0, 1_000_000_000, 120
NUMBERS = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536]
NUMBERS += [2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
TEXTS = "0 1 -1 2 3 99 -32 64 999999 2147483648 9223372036854775808 1e308 NaN Inf T F '' ()".split()
TEXTS += ", 4000 16000000 -0 None".split()
IMAGE = np.arange(64.0).reshape(8, 8)
SIDE, OBSERVED = 12, ["image", "noise_map", "psf", "mask"]
SCENE = """description: A lens.
mass:
  epl: {theta_E: {start: 1.2, low: 0.2, high: 4}, slope: 2.0}
  shear: {gamma1: {prior: [0, 0.1]}}
source:
  source: {kind: sersic, n: {low: 0.5, high: 4}}
lens_light: {light: {kind: sersic, centre_x: epl.centre_x}}
psf: {fwhm: 0.2, oversampling: 2}
noise: {background_rms: 0.1, exposure: 100}
half_width: 2.5
"""
POPULATION = """schema: 1
name: lenses
version: 1
description: Lenses.
field: {n_pixels: 12, pixel_scale: 0.2, supersample: 2}
psf: {kind: image, file: psf.fits, oversampling: 2, normalise: true}
scene:
  mass:
    epl: {theta_E: {kind: normal, mean: 1, sigma: 0.1, low: 0.7, high: 1.3}, slope: 2.1}
    shear: {gamma1: {kind: uniform, low: -0.1, high: 0.1}}
    multipole4: {m: 4, a: {kind: normal, mean: 0, sigma: 0.01, low: -0.03, high: 0.03}, b: 0}
  source:
    source: {kind: sersic, amplitude: 100, R_e: 0.2, n: {kind: uniform, low: 1, high: 3}, centre_x: 0.1}
  lens_light:
    light: {kind: sersic, amplitude: 50, R_e: 0.5, n: 4, centre_x: epl.centre_x, e1: epl.e1}
classes:
  "no": {kind: none}
  sphere:
    kind: point_masses
    count: 3
    mass: {kind: power_law, slope: -0.9, low: 1.0e+6, high: 1.0e+10}
    radius: {kind: uniform, low: 0, high: 2}
noise: {kind: poisson, sky: 10}
stored: minmax
"""
LENSES = """psf: {kind: gaussian, sigma: 0.1, truncate: 4}
conserve_mass: true
lens:
  theta_E: {kind: normal, mean: 1, sigma: 0.1, low: 0.7, high: 1.3}
  e1: 0
  e2: {kind: uniform, low: -0.1, high: 0.1}
  gamma: {kind: uniform, low: 0, high: 0.3}
  gamma_angle: 10
source: {kind: sersic, amplitude: 100, R_e: 0.5, n: 1.5, q: 0.7, angle: 0, position: {kind: polar, radius: 0.1}}
"""


def seeds():
    """Return valid files by kind, most readers having several."""
    import h5py
    from astropy.io import fits
    from PIL import Image

    def saved(write, *arguments, **options):
        stream = io.BytesIO()
        write(stream, *arguments, **options)
        return stream.getvalue()

    def hdf5(libver="earliest", **options):
        stream = io.BytesIO()
        with h5py.File(stream, "w", libver=libver) as file:
            file.create_dataset("image_data", data=IMAGE, **options)
            file["deep/exposure"], file["transform_pix2angle"] = IMAGE.astype("f4"), np.diag([0.05, 0.05])
            file.attrs["pixel_scale"] = 0.05
        return stream.getvalue()

    def picture(array, kind, **options):
        return saved(lambda stream: Image.fromarray(array).save(stream, format=kind, **options))

    sky = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -1.4e-5, "CDELT2": 1.4e-5, "BUNIT": "e-/s"}
    primary = fits.PrimaryHDU(IMAGE.astype("f4"), fits.Header(sky))
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])])
    counts = fits.ImageHDU(IMAGE.astype(np.int16), name="CTS")
    counts.header["BLANK"], counts.header["BSCALE"] = 99, 0.5
    plain = [saved(primary.writeto), saved(fits.HDUList([fits.PrimaryHDU(), table, counts]).writeto)]
    packed = [
        saved(fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(IMAGE.astype(kind), **options)]).writeto)
        for kind, options in (
            (np.int16, {"compression_type": "RICE_1"}),
            (np.float32, {"compression_type": "GZIP_2", "quantize_level": 0}),
            (np.float32, {"compression_type": "RICE_1", "tile_shape": (4, 4)}),
            (np.int32, {"compression_type": "HCOMPRESS_1", "tile_shape": (8, 8)}),
            (np.int16, {"compression_type": "PLIO_1"}),
        )
    ]
    pair = np.empty(2, dtype=object)
    pair[0], pair[1] = IMAGE, 1e-23
    return {
        **observations(saved),
        "npy": [
            saved(np.save, IMAGE),
            saved(np.save, IMAGE[None].astype(">i2")),
            saved(np.save, np.asfortranarray(IMAGE)),
        ],
        "objects": [objects(pickle.dumps(pair, protocol=p)) for p in (3, 4)],
        "npz": [
            saved(np.savez, image=IMAGE, pixel_scale=0.05),
            saved(np.savez_compressed, image=IMAGE, other=IMAGE[:4]),
        ],
        "fits": plain,
        "fits.fz": packed,
        "fits.gz": [gzip.compress(content) for content in plain],
        "fits.bz2": [bz2.compress(content) for content in plain],
        "hdf5": [
            hdf5(),
            hdf5("latest"),
            hdf5(chunks=(4, 4), compression="gzip", shuffle=True),
            hdf5("latest", chunks=(4, 8), compression="gzip", fletcher32=True),
            hdf5(chunks=(4, 8), compression="lzf", shuffle=True),
        ],
        "png": [
            picture(IMAGE.astype(np.uint8), "PNG"),
            picture(IMAGE.astype(np.uint16) * 900, "PNG"),
            picture(np.repeat(IMAGE.astype(np.uint8)[..., None], 3, 2), "PNG"),
        ],
        "tiff": [
            picture(IMAGE.astype(np.uint8), "TIFF"),
            picture(IMAGE.astype(np.uint16), "TIFF", compression="tiff_lzw"),
            picture(IMAGE.astype(np.float32), "TIFF", compression="tiff_adobe_deflate"),
        ],
    }


def observations(saved):
    """Return valid inputs of `darklens fit`, lists of files, indexes and scenes."""
    import h5py
    from astropy.io import fits

    g = np.random.default_rng(0)
    mask = np.zeros((SIDE, SIDE), dtype=np.int16)
    mask[0, :3] = 1
    kernel = np.exp(-np.hypot(*np.mgrid[-2:3, -2:3]))
    planes = {"image": g.normal(size=(SIDE, SIDE)), "noise_map": np.ones((SIDE, SIDE)), "psf": kernel / kernel.sum()}
    planes |= {"mask": mask}
    header = fits.Header({"PIXSCALE": 0.05, "BUNIT": "electron/s", "EXPTIME": 100.0, "GAIN": 2.0})

    def units(**named):
        units = [fits.PrimaryHDU(), *(fits.ImageHDU(plane, header, name) for name, plane in named.items())]
        return saved(fits.HDUList(units).writeto)

    def single(name):
        return saved(fits.PrimaryHDU(planes[name], header if name == "image" else None).writeto)

    def hdf5(**arrays):
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            for name, array in arrays.items():
                file[name] = array
        return stream.getvalue()

    stack = {"images": np.stack([planes["image"]] * 2), "noise": np.ones((2, SIDE, SIDE)), "pixel_scale": 0.05}
    stack |= {"psf": planes["psf"]}
    several = {"SCI": planes["image"], "ERR": planes["noise_map"], "PSF": planes["psf"], "DQ": mask}
    weights = {"SCI": planes["image"], "WHT": planes["noise_map"], "EXP": planes["noise_map"] * 100}
    return {
        **{name: [single(name), saved(np.save, plane)] for name, plane in planes.items()},
        "observation": [units(**several), units(**weights), saved(np.savez, **stack), hdf5(**stack)],
        "list": [b"a/1.fits\nb.npy\n", b"# comment\r\n'a b.npy'\r\n*.fits\r\n", "\ufeffa.npy\nd\xe9.npy".encode()],
        "index": [b"no/1.npy,0\nsphere/1.npy,1\n", b'file,label\r\n"no/1.npy",no\r\nvort/1.npy,vort\r\n'],
        "scene": [SCENE.encode()],
        "population": populations(),
        "population_psf": [single("psf"), saved(np.save, kernel), saved(np.savez, a=kernel)],
        **bundle(kernel),
    }


def populations():
    """Return populations with a scene and an image as PSF, and with a lens and a Gaussian."""
    head, tail = POPULATION.partition("psf: ")[0], POPULATION.partition("classes:")
    return [POPULATION.encode(), (head + LENSES + tail[1] + tail[2]).encode()]


def bundle(kernel):
    """Return contract and weights of a bundle whose population has a scene and an image as PSF."""
    import torch

    from darklens.bundle import storage
    from darklens.bundle.contract import Contract

    image = base64.b64encode(kernel.astype("<f4").tobytes()).decode()
    population = yaml.safe_load(POPULATION) | {"psf": {"kind": "image", "shape": list(kernel.shape), "values": image}}
    model = {"kind": "lens_residual", "width": 4, "population": population}
    whole = json.loads((ROOT / "src/darklens/weights/lens_residual/bundle.json").read_text())
    change = {"model": model, "n_pixels": 12, "pixel_scale": 0.2, "ood_sha256": "", "calibration": None}
    contract = Contract.model_validate(whole | change | {"classes": ["no", "sphere"]})
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        storage.write(Path(folder), contract, contract.build(), None)
        read = {"contract": "bundle.json", "weights": "model.safetensors"}
        return {kind: [(Path(folder) / name).read_bytes()] for kind, name in read.items()}


def objects(payload):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    return stream.getvalue() + payload


def mutated(kind, files, g):
    """Return one mutated file of a kind, from the generator `g`."""
    content = files[kind][g.integers(len(files[kind]))]
    if g.random() < (SEVERAL_VALUES if kind in ("population", "contract") else 0.5) and kind in BY_KIND:
        content = BY_KIND[kind](content, files, g)
        if g.random() < 0.7:
            return content
    for _ in range(g.choice([1, 1, 1, 2, 4, 16])):
        content = generic(content, files, g)
    return content


def generic(content, files, g):
    """Change bits, bytes or numbers, cut, repeat, leave out, or put in a piece of another file."""
    data = bytearray(content)
    if len(data) < 8:
        return bytes(data)
    reach = min(len(data), int(g.choice([64, 200, 600, 3000, len(data)])))
    at, how = int(g.integers(reach)), g.integers(9)
    if how == 0:
        data[at] ^= 1 << int(g.integers(8))
    elif how == 1:
        data[at] = int(g.choice([0, 1, 32, 45, 57, 127, 128, 255, g.integers(256)]))
    elif how in (2, 3):
        size = int(g.choice([1, 2, 4, 8]))
        number = NUMBERS[g.integers(len(NUMBERS))] % 256**size
        at -= at % size if g.random() < 0.5 else 0
        data[at : at + size] = number.to_bytes(size, "little" if how == 2 else "big")
    elif how == 4:
        del data[at:]
    elif how == 5:
        del data[at : at + int(g.integers(1, 64))]
    elif how == 6:
        piece = data[at : at + int(g.integers(1, 64))]
        data[at:at] = piece * int(g.choice([1, 2, 50]))
    elif how == 7:
        kind = list(files)[g.integers(len(files))]
        other = files[kind][g.integers(len(files[kind]))]
        start = int(g.integers(len(other)))
        data[at : at + int(g.integers(64))] = other[start : start + int(g.integers(1, 300))]
    else:
        data[at : at + 8] = bytes(g.integers(0, 256, 8, dtype=np.uint8))
    return bytes(data)


def npy_header(content, files, g):
    """Write a new header: any shape and type, an impossible order, wrong lengths."""
    shape = tuple(int(g.choice([0, 1, 2, 8, 64, -1, 4000, 10**9, 2**62])) for _ in range(g.integers(0, 5)))
    types = "<f8 >f4 |u1 <i8 |b1 <c16 |O <U4 |S9 <f2 <f16 |V8 <M8[s] f8,f4 (2,2)f8".split()
    types += "(100000,100000)f8 <U999999999 x 8".split()
    fields = {"descr": types[g.integers(len(types))], "fortran_order": bool(g.integers(2)), "shape": shape}
    if g.random() < 0.2:
        fields["descr"] = [("a", "<f8"), ("b", "<f8", shape)]
    text = repr(fields)
    if g.random() < 0.2:
        text = g.choice(
            ["(" * 3000, "{'a':" * 900, "[" * 90 + "]" * 90, "-" * 9000 + "1", "__import__('os')", text[:-1], text * 2]
        )
    version = int(g.choice([1, 1, 2, 3, 4, 0]))
    length = len(text) if g.random() < 0.8 else int(g.choice([0, 1, 65535, 2**31, 2**32 - 1]))
    packed = struct.pack("<H", length % 65536) if version == 1 else struct.pack("<I", length)
    return b"\x93NUMPY" + bytes([version, 0]) + packed + text.encode() + bytes(int(g.choice([0, 8, 512, 4096])))


def pickle_steps(content, files, g):
    """Insert opcodes into a pickle, some of them many times."""
    opcodes = (
        b"0 2 ( ) ] } a e t R b N \x88 K\x05 q\x00 h\x00 \x94 \x85 \x86 \x87 cos\nsystem\n cbuiltins\neval\n "
        b"X\x02\x00\x00\x00ls \x81 i cnumpy\nndarray\n cnumpy\ndtype\n \x8c\x05posix\x8c\x06system\x93 "
        b"B\xff\xff\xff\x7f \x8e\xff\xff\xff\xff\xff\xff\xff\xff \x8b\xff\xff\xff\x7f I9999999999999\n "
        b"j\xff\xff\xff\xff r\xff\xff\xff\xff P1\n \x82\x01 ."
    ).split(b" ")
    start = content.index(b"\n") + 1
    data = bytearray(content)
    for _ in range(g.integers(1, 5)):
        at = int(g.integers(start, len(data)))
        data[at:at] = opcodes[g.integers(len(opcodes))] * int(g.choice([1, 1, 2, 2000]))
    return bytes(data)


def zip_members(content, files, g):
    """Pack mutated arrays, additional members, other compressions and wrong sizes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(content if hasattr(content, "read") else io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    packing = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", packing[g.integers(len(packing))]) as archive:
        warnings.simplefilter("ignore")
        for name, data in members.items():
            how = g.random()
            changed = npy_header(data, files, g) if how < 0.3 else generic(data, files, g) if how < 0.7 else data
            archive.writestr(name if g.random() < 0.9 else g.choice(["../x.npy", "x", "/", "a" * 9999, name]), changed)
            if g.random() < 0.05:
                archive.writestr("bomb.npy", bytes(10_000_000))
        archive.comment = bytes(int(g.choice([0, 0, 0, 30])))
    data = bytearray(stream.getvalue())
    for signature, fields in ((b"PK\x01\x02", (20, 24, 42)), (b"PK\x03\x04", (18, 22)), (b"PK\x05\x06", (8, 12, 16))):
        at = data.find(signature)
        if at >= 0 and g.random() < 0.2:
            field = at + int(g.choice(fields))
            data[field : field + 4] = (NUMBERS[g.integers(len(NUMBERS))] % 2**32).to_bytes(4, "little")
    return bytes(data)


def fits_cards(content, files, g):
    """Change values of cards, or add, repeat, move and leave out cards."""
    blocks = bytearray(content)
    cards = [i for i in range(0, len(blocks) - 79, 80) if blocks[i : i + 8].strip() and blocks[i + 8 : i + 10] == b"= "]
    keywords = "NAXIS NAXIS1 NAXIS2 NAXIS3 BITPIX BSCALE BZERO BLANK PCOUNT GCOUNT CDELT1 CD1_1 CTYPE1 CUNIT1".split()
    keywords += "ZIMAGE ZCMPTYPE ZNAXIS1 ZTILE1 ZBITPIX ZVAL1 TFORM1 THEAP PIXSCALE SECPIX1 INHERIT".split()
    keywords += "XTENSION EXTNAME ZIMAGE SIMPLE END CONTINUE HIERARCH PC1_1".split()
    for _ in range(g.integers(1, 4)):
        at, how = cards[g.integers(len(cards))], g.random()
        text = TEXTS[g.integers(len(TEXTS))]
        if how < 0.5:
            blocks[at + 10 : at + 80] = text.rjust(20).ljust(70).encode()
        elif how < 0.8:
            blocks[at : at + 80] = f"{keywords[g.integers(len(keywords))]:8s}= {text:>20s}".ljust(80).encode()
        elif how < 0.9:
            other = cards[g.integers(len(cards))]
            blocks[at : at + 80] = blocks[other : other + 80]
        else:
            blocks[at : at + 80] = b"END".ljust(80) if g.random() < 0.3 else b" " * 80
    return bytes(blocks)


def packed_fits(pack, unpack):
    def change(content, files, g):
        inner = fits_cards(unpack(content), files, g)
        return pack(inner + (bytes(4_000_000) if g.random() < 0.02 else b""))

    return change


def png_chunks(content, files, g):
    """Change a chunk and correct its checksum, unpack and change the pixels, or repeat, move and add chunks."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    where = int(g.integers(len(chunks)))
    name, data = chunks[where]
    how = g.random()
    if name == b"IHDR" or how < 0.3:
        header = bytearray(chunks[0][1])
        field = int(g.choice([0, 4, 8, 9, 10, 11, 12]))
        size = 4 if field < 8 else 1
        header[field : field + size] = (NUMBERS[g.integers(len(NUMBERS))] % 256**size).to_bytes(size, "big")
        chunks[0] = (b"IHDR", bytes(header))
    elif how < 0.5:
        pixels = generic(zlib.decompress(chunks[1][1]), files, g) if chunks[1][0] == b"IDAT" else b""
        chunks[1] = (b"IDAT", zlib.compress(pixels + (bytes(20_000_000) if g.random() < 0.02 else b"")))
    elif how < 0.7:
        kinds = b"tEXt zTXt iTXt iCCP PLTE tRNS gAMA acTL fcTL fdAT eXIf pHYs IDAT".split()
        if g.random() < 0.2:
            payload = zlib.compress(bytes(3_000_000))
        else:
            payload = bytes(g.integers(0, 256, int(g.integers(40)), dtype=np.uint8))
        chunks.insert(int(g.integers(1, len(chunks) + 1)), (kinds[g.integers(len(kinds))], b"a\0\0" + payload))
    elif how < 0.85:
        chunks[where] = (name, generic(data, files, g))
    else:
        chunks.insert(int(g.integers(len(chunks))), chunks.pop(where))
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return content[:8] + b"".join(packed)


def tiff_fields(content, files, g):
    """Change tag, type, count or value of fields of the first directory."""
    data = bytearray(content)
    directory = int.from_bytes(data[4:8], "little")
    n = int.from_bytes(data[directory : directory + 2], "little")
    tags = [256, 257, 258, 259, 262, 273, 277, 278, 279, 317, 322, 323, 324, 325, 330, 339, 34665, 34675, 700, 32997]
    for _ in range(g.integers(1, 4)):
        at = directory + 2 + 12 * int(g.integers(n))
        field, size = [(0, 2), (2, 2), (4, 4), (8, 4)][g.integers(4)]
        value = tags[g.integers(len(tags))] if field == 0 else NUMBERS[g.integers(len(NUMBERS))]
        value = int(g.integers(18)) if field == 2 else value
        data[at + field : at + field + size] = (value % 256**size).to_bytes(size, "little")
    return bytes(data)


WORDS = """
.. /etc/passwd ~ " ' # @x ** [ % , ,,,, =1+1 no/1.npy 3 -1 1.0 2147483648 *a <<: 2001-99-99 1e999 .nan .inf -.inf | >
--- ... null [] {} true 1:60:60 epl.centre_x light.centre_x fwhm: kind: nfw sersic !!set !!binary aaa
!!python/name:os.system
""".split()
WORDS += ["&a [*a, *a]", "!!python/object/apply:os.system [ls]", "? {}", "- x", "<<: *a", "fwhm: -1", "kind: nfw", "\0"]
WORDS += ["\ufeff", "\r", "\u202e", "\u2028", "../" * 40 + "etc/passwd", "a" * 5000, "1" * 5000, "0x" + "f" * 3000]
WORDS += ["[" * 3000, "{a: " * 500]


def text_lines(content, files, g):
    """Change, repeat, move and leave out lines and words of a text, and put in what parsers stumble over."""
    lines = content.split(b"\n")
    for _ in range(g.integers(1, 4)):
        at, how = int(g.integers(len(lines))), g.integers(7)
        word = WORDS[g.integers(len(WORDS))].encode()
        if how == 0:
            lines[at] = word
        elif how == 1:
            lines[at : at + 1] = [lines[at]] * int(g.choice([0, 2, 300]))
        elif how == 2:
            lines.insert(int(g.integers(len(lines) + 1)), lines[at])
        elif how == 3:
            lines[at] = b" " * int(g.integers(9)) + lines[at].strip()
        elif how == 4 and (separators := [i for i, c in enumerate(lines[at]) if c in b",: {}[]"]):
            start = separators[g.integers(len(separators))] + 1
            end = next((i for i in separators if i > start), len(lines[at]))
            lines[at] = lines[at][:start] + word + lines[at][end:]
        elif how == 5:
            lines[at] += word
        else:
            lines[at] = bytes(g.integers(0, 256, 8, dtype=np.uint8)) + lines[at]
        lines = lines or [b""]
    return b"\n".join(lines)


CALAMITIES = [
    0,
    -1,
    1,
    2,
    3,
    0.5,
    1e-300,
    1e300,
    1e9,
    10**18,
    -(10**18),
    math.inf,
    math.nan,
    True,
    None,
    "",
    "x",
    [],
    {},
]
CALAMITIES += [[0, 0], [-1, -25], [25, 1], [1, 25], [10**9, 10**9], ["a"], "epl.theta_E", "epl.centre_x", "source.n"]
CALAMITIES += [
    "light.centre_x",
    "source.centre_x",
    "light.e1",
    "epl.x",
    "<b onclick=alert(1)>",
    "=1+1",
    "\x1b[31m",
    "a" * 5000,
]
CALAMITIES += [
    "image",
    "gaussian",
    "psf.npy",
    "nothing.fits",
    "a/../../b",
    "AAAA",
    "!",
    {"kind": "uniform", "low": 1, "high": 0},
]
CALAMITIES += [{"kind": "uniform", "low": -1e300, "high": 1e300}, {"kind": "normal", "mean": 1, "sigma": 1e300}]
CALAMITIES += [{"kind": "normal", "mean": 1, "sigma": 1}, {"kind": "uniform", "low": 0.5, "high": 1.5}]
CALAMITIES += [{"kind": kind} for kind in ("sis", "nfw", "sersic", "shapelets", "point_masses", "line_mass", "images")]
CALAMITIES += [
    base64.b64encode(np.full(25, value, dtype="<f4").tobytes()).decode()
    for value in (np.nan, np.inf, 0, -1, 1e38, 1e-40)
]


def tree_values(load, dump):
    def change(content, files, g):
        """Replace, leave out, repeat and rename values of a tree."""
        tree = load(content)
        for _ in range(g.choice([1, 1, 1, 2, 4])):
            nodes = [(tree, key) for key in tree]
            for node, key in nodes:
                if isinstance(node[key], dict | list):
                    nodes += [
                        (node[key], k) for k in (node[key] if isinstance(node[key], dict) else range(len(node[key])))
                    ]
            if not nodes:
                break
            (node, key), how = nodes[g.integers(len(nodes))], g.integers(9)
            if how < 6:
                node[key] = copy.deepcopy(CALAMITIES[g.integers(len(CALAMITIES))])
            elif how == 6:
                node.pop(key)
            elif how == 7:
                other, name = nodes[g.integers(len(nodes))]
                node[key] = copy.deepcopy(other[name])
            elif isinstance(node, dict):
                names = [k for other, k in nodes if isinstance(other, dict)] + [
                    w for w in CALAMITIES if isinstance(w, str)
                ]
                node[names[g.integers(len(names))]] = node.pop(key) if g.random() < 0.5 else copy.deepcopy(node[key])
        return dump(tree)

    return change


yaml_values = tree_values(yaml.safe_load, lambda tree: yaml.safe_dump(tree).encode())
json_values = tree_values(json.loads, lambda tree: json.dumps(tree).encode())


def population_values(content, files, g):
    return (yaml_values if g.random() < 0.7 else text_lines)(content, files, g)


def observed(content, files, g):
    """Change an input of a fit as its type is changed."""
    if content.startswith(b"SIMPLE"):
        return fits_cards(content, files, g)
    if content.startswith(b"PK"):
        return zip_members(content, files, g)
    return npy_header(content, files, g) if content.startswith(b"\x93") else generic(content, files, g)


BY_KIND = {
    **dict.fromkeys([*OBSERVED, "observation", "population_psf"], observed),
    **dict.fromkeys(["list", "index", "scene"], text_lines),
    "population": population_values,
    "contract": json_values,
    "npy": npy_header,
    "objects": pickle_steps,
    "npz": zip_members,
    "fits": fits_cards,
    "fits.fz": fits_cards,
    "fits.gz": packed_fits(lambda data: gzip.compress(data, 1), gzip.decompress),
    "fits.bz2": packed_fits(bz2.compress, bz2.decompress),
    "png": png_chunks,
    "tiff": tiff_fields,
}
KINDS = ["npy", "objects", "npz", "fits", "fits.fz", "fits.gz", "fits.bz2", "hdf5", "png", "tiff"]
KINDS += [*OBSERVED, "observation", "list", "index", "scene", "population", "population_psf", "contract"]
NAMES = {"index": "labelled/index.csv", "scene": "scene.yaml", "observation": "input.npz"}  # of the file; else `input`
NAMES |= {"population": "population.yaml", "population_psf": "lenses/psf.fits", "contract": "bundle/bundle.json"}
SEVERAL_VALUES = 0.8  # share of mutations by kind for files whose text is seldom read after a change of bytes


def input_of(seed, i, files):
    """Return kind and content of input number i."""
    g = np.random.default_rng([seed, i])
    kind = KINDS[i % len(KINDS)]
    return kind, mutated(kind, files, g)


def readers(folder, files):
    """Return functions that read an input of each kind that is not a single image, beside valid ones in a folder."""
    from darklens import populations
    from darklens.bundle import storage
    from darklens.data.deeplense import list_images
    from darklens.data.image_paths import expand
    from darklens.populations.population import Population
    from darklens.scene import specification
    from darklens.scene.observation_files import Inputs, read_observation
    from darklens.scene.observation_paths import find_observations
    from darklens.simulate.batch import simulate_batch
    from darklens.simulate.truth import draw

    for name in OBSERVED:
        (folder / f"{name}.fits").write_bytes(files[name][0])
    for name in ("no", "sphere", "vort"):
        (folder / "labelled" / name).mkdir(parents=True)
        (folder / "labelled" / name / "1.npy").write_bytes(files["npy"][0])
    (folder / "psf.npy").write_bytes(files["psf"][1])
    (folder / "lenses").mkdir()
    (folder / "lenses" / "population.yaml").write_bytes(files["population"][0])
    (folder / "bundle").mkdir()
    (folder / "bundle" / "model.safetensors").write_bytes(files["weights"][0])
    valid = {name: str(folder / f"{name}.fits") for name in OBSERVED[1:]}

    def option(name):
        return lambda path: read_observation(str(folder / "image.fits"), Inputs(**(valid | {name: str(path)})))

    def observation(path):
        for label in find_observations([path])[:2]:
            read_observation(label)

    def check(population):
        if Population.model_validate_json(population.model_dump_json(by_alias=True)) != population:
            raise NonsenseError("the population is not that of its JSON")
        truth = draw(population, 0, range(2 * len(population.classes)))
        kernel = population.psf.kernel(population.field.pixel_scale).kernel
        values = [*truth.values(), kernel.numpy()]
        if population.field.n_pixels * population.field.supersample <= 64 and max(kernel.shape) <= 64:
            values.append(np.asarray(simulate_batch(population, 0, [0, 1])[0]))
        if not all(np.isfinite(array).all() for array in values) or truth["theta_E"].min() <= 0:
            raise NonsenseError("a population has values that are not finite")

    codecs.lookup("raw_unicode_escape")  # read from disk at its first use
    os.chdir(folder)
    return {
        **{name: option(name) for name in valid},
        "image": lambda path: read_observation(str(path), Inputs(pixel_scale=0.05, **valid)),
        "observation": observation,
        # A list may name any folder, such as /, whose files would take long to find.
        "list": lambda path: list(expand([f"@{path}"], lambda named: [Path(named)])),
        "index": lambda path: list_images(path.parent),
        "scene": lambda path: specification.get(str(path)),
        "population": lambda path: check(populations.get(str(path))),
        "population_psf": lambda path: check(populations.get(str(path.with_name("population.yaml")))),
        "contract": lambda path: check(storage.read(path.parent).contract.model.population),
    }


class NonsenseError(Exception):
    """An input was accepted that is none."""


class TooLongError(BaseException):
    """Not an Exception, so that no reader takes it for damage."""


def work(seed, first, last, folder):
    """Read inputs first to last - 1 and print a line of JSON for each; after a crash the parent starts a new worker."""
    from darklens.data import prepare as preparing
    from darklens.data.readers import read_image
    from darklens.errors import DarklensError

    files, violations, find_lens, folder = seeds(), [], preparing.find_lens, Path(folder)
    read = readers(folder, files)
    allowed = {str(folder / "input")}
    find_lens(np.eye(20), 0.05)  # imports what it needs

    def outcome_of(kind, content):
        path = folder / NAMES.get(kind, "input")
        allowed.clear()
        path.write_bytes(content)
        allowed.add(f"{folder}/" if kind in read else str(path))
        violations.clear()
        started = time.process_time()
        verdict = "accepted"
        try:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            if kind in read:
                read[kind](path)
            else:
                preparing.prepare(read_image(path), n_pixels=8, pixel_scale=0.05, name=str(path))
        except DarklensError as error:
            verdict = "refused"
            begins = str(error).startswith(f"{path}: ")
            if kind in read:
                # A list's message names the entry, that of a simulation the population.
                begins = kind == "list" or str(folder) in str(error) or str(error).startswith("lenses: ")
            if "\n" in str(error) or not begins:
                verdict = f"finding: not one sentence: {str(error)[:200]!r}"
            if isinstance(error.__context__, MemoryError):
                verdict = "finding: out of memory"
        except BaseException as error:
            verdict = f"finding: {type(error).__name__}: {str(error)[:200]}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return f"finding: {violations[0]}" if violations else verdict, time.process_time() - started

    def too_long(*_):
        raise TooLongError(f"more than {CPU_SECONDS} s of CPU time")

    def audit(event, arguments):
        if event == "open" and not isinstance(arguments[0], int) and not str(arguments[0]).startswith(tuple(allowed)):
            violations.append(f"opened {arguments[0]}")
        elif event.split(".")[0] in {"subprocess", "socket", "pickle", "ctypes"} or event in STARTS:
            violations.append(event)

    signal.signal(signal.SIGPROF, too_long)
    preparing.find_lens = lambda *_: (1.0, -2.0)
    for kind in KINDS:  # imports at first use happen before the audit
        for content in files[kind]:
            verdict = outcome_of(kind, content)[0]
            if verdict != "accepted":
                raise SystemExit(f"the valid {kind} is not read: {verdict}")
        for i in range(KINDS.index(kind), 40 * len(KINDS), len(KINDS)):
            outcome_of(*input_of(seed + 1, i, files))
    # Libraries are mapped but mostly never touched; only resident memory counts towards 1 GB.
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    room = mapped + MEMORY - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    sys.addaudithook(audit)
    for i in range(first, last):
        print(json.dumps({"start": i}), flush=True)
        kind, content = input_of(seed, i, files)
        preparing.find_lens = find_lens if i % 1000 < 2 else lambda *_: (1.0, -2.0)
        verdict, seconds = outcome_of(kind, content)
        entry = {"i": i, "kind": kind, "verdict": verdict, "seconds": seconds, "bytes": len(content)}
        if verdict.startswith("finding"):
            entry["content"] = base64.b64encode(content).decode()
        print(json.dumps(entry | {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}), flush=True)


STARTS = {f"os.{name}" for name in "system exec fork forkpty posix_spawn spawn remove rename mkdir".split()}


def run(seed, first, last, seconds, keep):
    """Return counts by kind, findings, and where the run ended."""
    counts, findings, slowest, peak = {kind: Counter() for kind in KINDS}, [], (0.0, -1), 0
    deadline, done, files = time.monotonic() + seconds, first, seeds()
    while done < last and time.monotonic() < deadline:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            words = [
                sys.executable,
                str(Path(__file__).resolve()),
                "--worker",
                folder,
                "--seed",
                seed,
                "--first",
                done,
                "--inputs",
                last - done,
            ]
            environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            process = subprocess.Popen(
                [str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
            )
            signal.signal(signal.SIGALRM, lambda *_, process=process: process.kill())
            started = None
            try:
                while line := process.stdout.readline():
                    signal.alarm(WALL_SECONDS)
                    entry = json.loads(line)
                    started = entry.get("start", started)
                    if "i" not in entry:
                        continue
                    done = entry["i"] + 1
                    counts[entry["kind"]][entry["verdict"].split(":")[0]] += 1
                    slowest, peak = max(slowest, (entry["seconds"], entry["i"])), max(peak, entry["rss"])
                    if entry["verdict"].startswith("finding"):
                        findings.append(entry)
                    if time.monotonic() > deadline:
                        process.kill()
                        break
            finally:
                signal.alarm(0)
                process.kill()
                code = process.wait()
            if done < last and time.monotonic() < deadline:
                if started is None or started < done:
                    raise SystemExit(f"the worker ended without output (exit code {code}) after input {done - 1}")
                kind, content = input_of(seed, done, files)
                counts[kind]["finding"] += 1
                entry = {"i": done, "kind": kind, "verdict": f"finding: the process ended, exit code {code}"}
                findings.append(entry | {"content": base64.b64encode(content).decode()})
                done += 1
    for entry in findings:
        content = base64.b64decode(entry.pop("content"))
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{seed}-{entry['i']}.{entry['kind']}").write_bytes(content)
        print(entry)
    return counts, findings, slowest, peak, done


def shared(options, read_json):
    """Run equal parts of the inputs in processes of their own and return the sum of their results."""
    edges = [options.first + options.inputs * i // options.processes for i in range(options.processes + 1)]
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{first}.json" for first in edges[:-1]]
        words = [sys.executable, __file__, "--seed", str(options.seed), "--keep", str(options.keep)]
        running = [
            subprocess.Popen([*words, "--first", str(first), "--inputs", str(last - first), "--out", str(part)])
            for first, last, part in zip(edges[:-1], edges[1:], parts, strict=True)
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise SystemExit("a part of the inputs was not read to its end")
        results = [read_json(part) for part in parts]
    whole = results[-1]
    for kind, tally in whole["readers"].items():
        tally.update({name: sum(result["readers"][kind][name] for result in results) for name in tally})
    slowest = max((result["slowest"] for result in results), key=lambda slow: slow["cpu_seconds"])
    peak = max(result["peak_rss_bytes"] for result in results)
    sums = {name: sum(result[name] for result in results) for name in ("inputs", "findings")}
    return whole | sums | {"slowest": slowest, "peak_rss_bytes": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input; counts are added to --out")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-findings")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "fuzz.json")
    parser.add_argument("--processes", type=int, default=1, help="share the inputs among processes")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.seed, options.first, options.first + options.inputs, options.worker)
        return

    from darklens import __version__
    from darklens.files import read_json, write_json
    from darklens.provenance import commit, hardware

    if options.processes > 1:
        write_json(options.out, shared(options, read_json))
        return
    counts, findings, slowest, peak, done = run(
        options.seed, options.first, options.first + options.inputs, options.seconds, options.keep
    )
    before = read_json(options.out) if options.first and options.out.exists() else {}
    if before and (before["seed"] != options.seed or before["next"] != options.first):
        raise SystemExit(
            f"{options.out} ends before input {before['next']} of seed {before['seed']}; go on from there."
        )
    readers = {
        kind: {
            name: tally[name] + before.get("readers", {}).get(kind, {}).get(name, 0)
            for name in ("accepted", "refused", "finding")
        }
        for kind, tally in counts.items()
    }
    slow = max(slowest, tuple(before.get("slowest", {"cpu_seconds": 0.0, "input": -1}).values()))
    about = {"version": __version__, "commit": commit(), "hardware": hardware()}
    result = {
        "schema": 1,
        "seed": options.seed,
        "inputs": sum(sum(tally.values()) for tally in readers.values()),
        "next": done,
        "findings": len(findings) + before.get("findings", 0),
        "readers": readers,
        "slowest": {"cpu_seconds": round(slow[0], 4), "input": slow[1]},
        "peak_rss_bytes": max(peak, before.get("peak_rss_bytes", 0)),
        "limits": {"cpu_seconds": CPU_SECONDS, "memory_bytes": MEMORY},
        "provenance": about,
    }
    write_json(options.out, result)
    print(json.dumps({key: result[key] for key in ("inputs", "next", "findings", "slowest", "peak_rss_bytes")}))


if __name__ == "__main__":
    main()
