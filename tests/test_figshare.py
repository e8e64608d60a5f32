import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from braintumor import figshare
from braintumor.errors import UserError

SHIPPED = Path(figshare.__file__).with_name("patients.csv")


def head(seed, rows=96, columns=64):
    """Draw a bright oval with smooth structure inside, like no mirror image of itself."""
    noise = np.random.default_rng(seed).integers(0, 200, (6, 6), np.uint8)
    texture = Image.fromarray(noise).resize((columns, rows), Image.Resampling.BICUBIC)
    y, x = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    return np.where(x**2 + y**2 < 0.8, 40 + np.asarray(texture), 0).astype(np.uint8)


def rectangle(left, top, right, bottom, rows=96, columns=64):
    mask = np.zeros((rows, columns), bool)
    mask[top:bottom, left:right] = True
    return mask


def write_mat(path, code, image, mask):
    """Write a file as MATLAB does: a text header, then HDF5 with matrices transposed and text as numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.nonzero(mask)
    fields = {
        "PID": (np.array([[ord(character)] for character in code], np.uint16), "char"),
        "image": (image.T.astype(np.int16) * 5, "int16"),
        "label": (np.array([[2.0]]), "double"),
        "tumorBorder": (np.column_stack([columns, rows]).astype(float).reshape(1, -1), "double"),
        "tumorMask": (mask.T.astype(np.uint8), "logical"),
    }
    with h5py.File(path, "w", userblock_size=512) as file:
        group = file.create_group("cjdata")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, (values, class_) in fields.items():
            data = group.create_dataset(name, data=values, chunks=values.shape, compression="gzip")
            data.attrs["MATLAB_class"] = np.bytes_(class_)
    header = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, HDF5 schema 1.00 .".ljust(124) + b"\0\2IM"
    with path.open("r+b") as file:
        file.write(header)


@pytest.fixture
def work(tmp_path):
    """Lay out three slices of two people, and images of them and of somebody else."""
    mats = tmp_path / "mats"
    write_mat(mats / "brainTumorDataPublic_1-766" / "2.mat", "MR0402B", head(2), rectangle(8, 12, 24, 36))
    write_mat(mats / "brainTumorDataPublic_1-766" / "10.mat", "100360", head(10), rectangle(32, 24, 48, 72))
    write_mat(mats / "brainTumorDataPublic_767-1532" / "1000.mat", "MR0402A", head(3), rectangle(0, 0, 16, 48))
    (mats / "cvind.mat").write_bytes(b"Cheng's folds, no slice")

    images = {
        "Training/glioma/b.png": Image.fromarray(head(2)),
        "Training/glioma/a.jpg": Image.fromarray(head(2)[:, ::-1]).resize((300, 400)),
        "Testing/glioma/c.jpg": Image.fromarray(head(3)).convert("RGB"),
        "Testing/meningioma/d.png": Image.fromarray(head(10)[:, ::-1]).point(lambda value: value // 2),
        "Testing/notumor/e.png": Image.fromarray(head(5)),
        "Testing/notumor/upside-down.png": Image.fromarray(head(2)[::-1]),
    }
    for path, image in images.items():
        (tmp_path / "raw" / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "raw" / path)
    (tmp_path / "raw/Testing/notumor/broken.jpg").write_bytes(b"no image")
    paths = [*images, "Testing/notumor/broken.jpg"]
    pd.DataFrame({"path": paths, "label": "glioma"}).to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path


def arguments(work, *more):
    names = {"--manifest": "manifest.csv", "--raw": "raw", "--output": "out/table.csv"}
    return [str(work / "mats"), *(a for name, path in names.items() for a in (name, str(work / path))), *more]


def test_slices_come_out_upright(tmp_path):
    write_mat(tmp_path / "1.mat", "MR0402B", head(1), rectangle(8, 12, 24, 36))
    item = figshare.read_slice(tmp_path / "1.mat")
    assert item.code == "MR0402B"
    assert item.grey.shape == item.mask.shape == (96, 64)
    assert np.abs(item.grey - head(1) * (255 / head(1).max())).max() < 0.51  # only stretched
    assert (item.mask == rectangle(8, 12, 24, 36)).all()


def test_codes_that_differ_in_a_trailing_letter_are_one_person():
    codes = ["MR0402B", "100360", "MR0402A", "MR0402", "MR0403A", "A"]
    assert figshare.number_patients(codes).tolist() == [3, 1, 3, 3, 4, 2]


def test_box_runs_along_the_outer_edges():
    assert figshare.tumour_box(rectangle(8, 12, 24, 36)).tolist() == [8 / 64, 12 / 96, 24 / 64, 36 / 96]
    assert figshare.tumour_box(rectangle(0, 0, 64, 96)).tolist() == [0, 0, 1, 1]
    assert np.isnan(figshare.tumour_box(np.zeros((96, 64), bool))).all()


@pytest.mark.parametrize("box", [(8, 12, 24, 36), (0, 0, 64, 96), (5, 5, 6, 6)])
def test_outline_is_the_masks_with_its_corners_cut(box):
    outline = figshare.tumour_outline(rectangle(*box), points=1000) * (64, 96)
    assert outline.min(axis=0) == pytest.approx(box[:2])
    assert outline.max(axis=0) == pytest.approx(box[2:])
    x, y = outline.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    assert area == pytest.approx((box[2] - box[0]) * (box[3] - box[1]) - 4 / 8)


def test_outline_is_the_largest_parts_and_short():
    mask = rectangle(8, 12, 40, 60) | rectangle(50, 80, 52, 82)
    outline = figshare.tumour_outline(mask)
    assert outline.shape == (64, 2)
    assert outline.max() < 0.63
    gaps = np.linalg.norm((outline - np.roll(outline, 1, axis=0)) * (64, 96), axis=1)
    assert gaps.max() < 4  # of 160 pixels around
    assert figshare.tumour_outline(np.zeros((96, 64), bool)).shape == (0, 2)


def test_matching_in_blocks_changes_nothing():
    signatures = np.stack([figshare.signature(head(seed)) for seed in range(7)])
    slices = signatures[[4, 0]]
    for block in (1, 3, 7):
        index, flipped = figshare.match(signatures, slices, 0.99, block)
        assert index.tolist() == [1, -1, -1, -1, 0, -1, -1]
        assert not flipped[[0, 4]].any()


def test_table(work, capsys):
    figshare.main(arguments(work))
    text = (work / "out/table.csv").read_text()
    assert text.startswith(figshare.SOURCE)
    table = pd.read_csv(work / "out/table.csv", comment="#").set_index("path")
    found = table[["patient", "figshare_index", "mirrored", "left", "top", "right", "bottom"]]
    assert found.T.to_dict("list") == {  # by hand, from the rectangles above and 64 x 96 pixels
        "Testing/glioma/c.jpg": [2, 1000, 0, 0, 0, 0.25, 0.5],
        "Testing/meningioma/d.png": [1, 10, 1, 0.25, 0.25, 0.5, 0.75],
        "Training/glioma/a.jpg": [2, 2, 1, 0.625, 0.125, 0.875, 0.375],
        "Training/glioma/b.png": [2, 2, 0, 0.125, 0.125, 0.375, 0.375],
    }
    for row in table.itertuples():
        x, y = np.array(row.outline.split(), float).reshape(-1, 2).T
        assert 3 < len(x) <= 64
        edges = [x.min(), y.min(), x.max(), y.max()]
        assert edges == pytest.approx([row.left, row.top, row.right, row.bottom], abs=0.001)
    assert [file.name for file in (work / "out").iterdir()] == ["table.csv"]
    output, error = capsys.readouterr()
    assert output.splitlines() == [
        "3 of 3064 slices read, of 2 people",
        "4 of 7 images matched, 2 of them mirrored left-right",
        f"3 images match no slice; {work / 'out/table.csv'} does not list them",
    ]
    assert error == ""  # no bars where nobody watches


def test_no_match_is_a_table_without_rows(work):
    (work / "manifest.csv").write_text("path\nTesting/notumor/e.png\n")
    figshare.main(arguments(work))
    table = pd.read_csv(work / "out/table.csv", comment="#")
    assert table.columns.tolist() == figshare.COLUMNS
    assert table.empty


def break_nothing_there(work):
    for path in (work / "mats").rglob("*.mat"):
        path.unlink()


def break_no_folder(work):
    (work / "mats").rename(work / "elsewhere")


def break_old_matlab(work):
    (work / "mats/7.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(512))


def break_truncated(work):
    path = next((work / "mats").rglob("10.mat"))
    path.write_bytes(path.read_bytes()[:3000])


def break_fields(work):
    with h5py.File(work / "mats/7.mat", "w") as file:
        file["cjdata/PID"] = np.array([[77]], np.uint16)


def break_shapes(work):
    write_mat(work / "mats/7.mat", "1", head(7), rectangle(0, 0, 9, 9, rows=64))


def break_code(work):
    write_mat(work / "mats/7.mat", "\0\0", head(7), rectangle(0, 0, 9, 9))


def break_twice(work):
    write_mat(work / "mats/copy/2.mat", "1", head(7), rectangle(0, 0, 9, 9))


def break_no_manifest(work):
    (work / "manifest.csv").unlink()


def break_manifest(work):
    (work / "manifest.csv").write_text("file\na.png\n")


def break_empty_manifest(work):
    (work / "manifest.csv").write_text("path\n")


def break_raw(work):
    (work / "raw/Testing/glioma/c.jpg").unlink()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (break_nothing_there, "mats holds no numbered .mat file: unpack"),
        (break_no_folder, "mats is not a folder"),
        (break_old_matlab, "7.mat cannot be read as HDF5 (MATLAB 7.3)"),
        (break_truncated, "10.mat cannot be read as HDF5 (MATLAB 7.3)"),
        (break_fields, "7.mat has no cjdata/image"),
        (break_shapes, "an image of shape (96, 64) and a tumorMask of shape (64, 64)"),
        (break_code, "7.mat has an empty patient code"),
        (break_twice, "have the same number"),
        (break_no_manifest, "manifest.csv does not exist"),
        (break_manifest, "manifest.csv is not a csv with a column path"),
        (break_empty_manifest, "manifest.csv lists no image"),
        (break_raw, "c.jpg is in the manifest but does not exist"),
    ],
)
def test_errors_name_the_file_in_one_line(work, break_it, message):
    break_it(work)
    with pytest.raises(SystemExit) as caught:
        figshare.main(arguments(work))
    assert message in caught.value.code
    assert caught.value.code.startswith("error: ")
    assert "\n" not in caught.value.code
    assert not (work / "out").exists()


def test_a_group_in_place_of_the_struct_is_no_traceback(tmp_path):
    with h5py.File(tmp_path / "1.mat", "w") as file:
        file["cjdata"] = np.zeros(3)
    with pytest.raises(UserError, match="has no cjdata/PID"):
        figshare.read_slice(tmp_path / "1.mat")


def test_command_line_exits_with_1_and_one_line(tmp_path):
    command = [sys.executable, "-m", "braintumor.figshare", str(tmp_path), "--similarity", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SHIPPED.parents[1])
    assert done.returncode == 1
    assert done.stderr == "error: --similarity is 2.0, but must lie between 0 and 1\n"
    assert done.stdout == ""


def test_shipped_table_is_the_measured_one():
    assert figshare.SOURCE in SHIPPED.read_text()
    table = pd.read_csv(SHIPPED, comment="#")
    assert table.columns.tolist() == ["path", "patient", "figshare_index", "mirrored"]
    assert len(table) == 4750
    assert table.path.is_unique
    assert table.path.is_monotonic_increasing
    assert set(table.patient) == set(range(1, 210))
    assert set(table.figshare_index) == set(range(1, 3065))
    assert table.mirrored.value_counts().to_dict() == {1: 3064, 0: 1686}
    assert set(table.figshare_index[table.mirrored == 1]) == set(range(1, 3065))
    assert table.groupby("figshare_index").patient.nunique().max() == 1

    split, class_, _ = table.path.str.split("/", expand=True).T.to_numpy()
    testing, training = (set(table.patient[split == name]) for name in ("Testing", "Training"))
    assert len(testing) == 188
    assert testing <= training
    assert (split == "Testing").sum() == 788
    assert pd.Series(class_).value_counts().to_dict() == {
        "pituitary": 1742,
        "glioma": 1621,
        "meningioma": 1387,
    }
    assert table.patient[class_ == "glioma"].nunique() == 65
