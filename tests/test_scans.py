import gzip

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from braintumor.images import UnreadableImageError
from braintumor.scans import choose_slices, is_scan, read_slices

RAMP = np.arange(12, dtype=np.int16).reshape(3, 4) * 100  # 0 to 1100


def write_dicom(path, pixels, kind="MONOCHROME2", **attributes):
    """Write pixels of shape ([frames,] rows, columns[, 3]) as a DICOM file without compression."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    samples = 3 if kind == "RGB" else 1
    shape = pixels.shape[:-1] if samples == 3 else pixels.shape
    dataset.Rows, dataset.Columns = shape[-2:]
    if len(shape) == 3:
        dataset.NumberOfFrames = shape[0]
    if samples == 3:
        dataset.PlanarConfiguration = 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = samples, kind
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def item(**attributes):
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def only(path):
    (part,) = read_slices(path, 5)
    assert part.number is None
    return part.grey


def stretched(values):
    values = np.asarray(values, float)
    return np.rint((values - values.min()) / (values.max() - values.min()) * 255).astype(np.uint8)


def test_dicom_without_a_window_is_stretched_from_its_smallest_to_its_largest(tmp_path):
    assert (only(write_dicom(tmp_path / "a.dcm", RAMP - 500)) == stretched(RAMP)).all()


def test_signed_dicom_is_rescaled_before_the_window(tmp_path):
    # Stored -50 to 500 by tens; times 2 minus 100 is -200 to 900. DICOM PS3.3 C.11.2.1.2.1: a window of centre 300
    # and width 401 is black up to 99.5 and white from 499.5.
    stored = (np.arange(56, dtype=np.int16).reshape(7, 8) - 5) * 10
    settings = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 300, "WindowWidth": 401}
    grey = only(write_dicom(tmp_path / "a.dcm", stored, **settings))
    expected = np.clip((stored * 2.0 - 100 - 99.5) / 400, 0, 1) * 255
    assert np.abs(grey - expected).max() <= 0.5
    assert grey.min() == 0 and grey.max() == 255 and 0 < np.median(grey) < 255


def test_a_window_wider_than_the_picture_does_not_stretch_it(tmp_path):
    grey = only(write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=1000.5, WindowWidth=2001))
    assert np.abs(grey - RAMP / 2000 * 255).max() <= 0.5


def test_the_first_of_several_windows_counts(tmp_path):
    first = only(write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=300, WindowWidth=300))
    several = write_dicom(tmp_path / "b.dcm", RAMP, WindowCenter=[300, 900], WindowWidth=[300, 10])
    assert (only(several) == first).all()


def test_a_lookup_table_is_applied(tmp_path):
    table = item(LUTDescriptor=[12, 0, 16], LUTData=[0, 5, 5, 5, 20, 20, 20, 20, 20, 20, 20, 40])
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    grey = only(write_dicom(tmp_path / "a.dcm", (RAMP // 100).astype(np.uint16), VOILUTSequence=[table]))
    assert (grey == stretched([[0, 5, 5, 5], [20, 20, 20, 20], [20, 20, 20, 40]])).all()


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 500, "WindowWidth": 700}])
def test_an_inverse_picture_looks_like_the_plain_one(tmp_path, window):
    plain = only(write_dicom(tmp_path / "a.dcm", RAMP, **window))
    # The largest value is black, so values and window are counted from the other end.
    turned = {"WindowCenter": 1100 - window["WindowCenter"] + 1} | {"WindowWidth": 700} if window else {}
    inverse = only(write_dicom(tmp_path / "b.dcm", 1100 - RAMP, "MONOCHROME1", **turned))
    assert np.abs(plain.astype(int) - inverse).max() <= 1
    assert plain[0, 0] == 0 and plain[2, 3] == 255


def test_colour_dicom_is_weighted_as_luma(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    assert only(write_dicom(tmp_path / "a.dcm", colours, "RGB")).tolist() == [[76, 150], [29, 255]]


def test_frames_are_numbered_from_one_and_chosen_from_the_middle(tmp_path):
    frames = np.stack([RAMP.astype(np.uint16) + 2000 * i for i in range(20)])
    path = write_dicom(tmp_path / "a.dcm", frames, WindowCenter=20000.5, WindowWidth=40001)
    parts = read_slices(path, 5)
    assert [part.number for part in parts] == [7, 9, 11, 13, 15]
    assert np.abs(parts[0].grey - (RAMP + 12000) / 40000 * 255).max() <= 0.5
    assert [part.number for part in read_slices(path, None)] == list(range(1, 21))


def test_an_enhanced_file_keeps_its_settings_with_the_frames(tmp_path):
    frames = np.stack([RAMP, RAMP])
    windows = [item(FrameVOILUTSequence=[item(WindowCenter=c, WindowWidth=401)]) for c in (300, 800)]
    shared = item(PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-100)])
    settings = {
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": windows,
    }
    first, second = read_slices(write_dicom(tmp_path / "a.dcm", frames, **settings), None)
    for part, black in ((first, 99.5), (second, 599.5)):
        assert np.abs(part.grey - np.clip((RAMP * 2.0 - 100 - black) / 400, 0, 1) * 255).max() <= 0.5


def test_dicom_is_known_by_its_first_bytes(tmp_path):
    for name in ("IM0001", "1.2.840.113619.2.5.78", "a.IMA"):
        path = write_dicom(tmp_path / name, RAMP)
        assert is_scan(path), name
        assert (only(path) == stretched(RAMP)).all()


def volume(shape, spacing, orientation="RAS"):
    """Make a volume whose value tells the place: 100 x + 10 y + z, from the left, the back and the bottom."""
    x, y, z = np.indices(shape)
    image = nibabel.Nifti1Image((100 * x + 10 * y + z).astype(np.int16), np.diag([*spacing, 1.0]))
    codes = nibabel.orientations.axcodes2ornt(orientation)
    return image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), codes))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", "PIL"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_an_axial_slice_has_the_front_above_and_the_right_side_on_the_left(tmp_path, orientation, suffix):
    path = tmp_path / f"a{suffix}"
    nibabel.save(volume((4, 3, 5), (1, 1, 5), orientation), path)
    parts = read_slices(path, None)
    assert [part.number for part in parts] == [1, 2, 3, 4, 5]
    # Rows from the front (y = 2) to the back, columns from the right (x = 3) to the left.
    values = [[100 * x + 10 * y for x in (3, 2, 1, 0)] for y in (2, 1, 0)]
    assert all((part.grey == stretched(values)).all() for part in parts)


def test_a_volume_is_cut_across_its_widest_spacing(tmp_path):
    for spacing, shape in (((6, 1, 1), (5, 3)), ((1, 6, 1), (5, 4)), ((1, 1, 6), (3, 4)), ((1, 1, 1), (3, 4))):
        nibabel.save(volume((4, 3, 5), spacing), tmp_path / "a.nii")
        assert read_slices(tmp_path / "a.nii", 1)[0].grey.shape == shape
    nibabel.save(volume((4, 3, 1), (9, 1, 1)), tmp_path / "a.nii")
    assert only(tmp_path / "a.nii").shape == (3, 4)


def test_a_sagittal_slice_has_the_top_above(tmp_path):
    nibabel.save(volume((4, 3, 5), (6, 1, 1)), tmp_path / "a.nii")
    values = [[10 * y + z for y in (2, 1, 0)] for z in (4, 3, 2, 1, 0)]
    assert (read_slices(tmp_path / "a.nii", 1)[0].grey == stretched(values)).all()


def test_a_series_has_its_first_volume_read_and_a_flat_image_itself(tmp_path):
    series = np.stack([np.indices((4, 3, 2)).sum(0), np.zeros((4, 3, 2))], axis=3).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(series, np.eye(4)), tmp_path / "a.nii")
    assert [part.grey.max() for part in read_slices(tmp_path / "a.nii", None)] == [255, 255]
    nibabel.save(nibabel.Nifti1Image(series[:, :, 0, 0], np.eye(4)), tmp_path / "b.nii")
    assert (only(tmp_path / "b.nii") == stretched([[5, 4, 3, 2], [4, 3, 2, 1], [3, 2, 1, 0]])).all()
    # Its axes run to the left and to the back, as ITK writes them.
    turned = nibabel.Nifti1Image(series[::-1, ::-1, 0, 0], np.diag([-1.0, -1.0, 1.0, 1.0]))
    nibabel.save(turned, tmp_path / "c.nii")
    assert (only(tmp_path / "c.nii") == only(tmp_path / "b.nii")).all()
    flat = series[:, :, 0, 0].astype(np.int64)
    nibabel.save(nibabel.Nifti1Image(flat, np.eye(4), dtype=np.int64), tmp_path / "d.nii")
    assert (only(tmp_path / "d.nii") == only(tmp_path / "b.nii")).all()


def test_slices_without_a_number_are_black_and_a_volume_without_one_is_an_error(tmp_path):
    values = np.full((4, 3, 3), np.nan, np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "none.nii")
    with pytest.raises(UnreadableImageError, match="no finite voxel"):
        read_slices(tmp_path / "none.nii", None)
    values[0, 0, 1], values[1, 1, 1] = 5, 7
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    assert [part.grey.max() for part in read_slices(tmp_path / "a.nii", None)] == [0, 255, 0]


def test_a_picture_of_more_pixels_than_any_scan_is_not_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")  # 50 kB
    with pytest.raises(UnreadableImageError, match="20000 x 20000 is over the limit of 100000000 pixels"):
        read_slices(tmp_path / "bomb.png", None)


def test_scaled_volumes_are_read_in_their_own_numbers(tmp_path):
    image = volume((4, 3, 5), (1, 1, 5))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "a.nii")
    assert read_slices(tmp_path / "a.nii", 1)[0].grey.max() == 255


@pytest.mark.parametrize(
    ("total", "count", "chosen"),
    [
        (20, 5, [6, 8, 10, 12, 14]),
        (8, 5, [0, 2, 4, 5, 7]),
        (3, 5, [0, 1, 2]),
        (4, None, [0, 1, 2, 3]),
        (9, 1, [4]),
    ],
)
def test_slices_come_evenly_from_the_middle(total, count, chosen):
    assert choose_slices(total, count) == chosen


def test_no_slice_is_chosen_twice_or_from_beyond():
    for total in range(1, 40):
        for count in range(1, 45):
            chosen = choose_slices(total, count)
            assert len(set(chosen)) == len(chosen) == min(total, count) and max(chosen) < total


def test_pictures_are_read_as_in_training(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "a.png")
    assert (only(tmp_path / "a.png") == stretched(RAMP)).all()


def test_what_cannot_be_read_says_why(tmp_path):
    good = write_dicom(tmp_path / "good.dcm", RAMP).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(good[:-6])
    (tmp_path / "text.dcm").write_text("hello")
    empty = pydicom.dcmread(tmp_path / "good.dcm")
    del empty.PixelData
    empty.save_as(tmp_path / "report.dcm")
    nibabel.save(volume((4, 3, 5), (1, 1, 1)), tmp_path / "good.nii")
    (tmp_path / "cut.nii").write_bytes((tmp_path / "good.nii").read_bytes()[:400])
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress((tmp_path / "good.nii").read_bytes())[:-20])
    (tmp_path / "text.nii").write_text("hello")
    (tmp_path / "text.png").write_text("hello")
    for name in ("cut.dcm", "text.dcm", "report.dcm", "cut.nii", "cut.nii.gz", "text.nii", "text.png"):
        with pytest.raises(UnreadableImageError) as caught:
            read_slices(tmp_path / name, 5)
        assert str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(FileNotFoundError):
        read_slices(tmp_path / "none.nii", 5)


def test_a_folder_of_mixed_files_has_its_scans_known_by_name(tmp_path):
    names = ["a.jpg", "a.PNG", "a.dcm", "a.nii", "a.nii.gz", "a.csv", "a.gz", ".DS_Store", ".a.jpg", "README"]
    for name in names:
        (tmp_path / name).write_text("hello")
    assert [name for name in names if is_scan(tmp_path / name)] == ["a.jpg", "a.PNG", "a.dcm", "a.nii", "a.nii.gz"]
    # What cannot be opened is left to the reading, which says so.
    assert is_scan(tmp_path / "gone")
