"""Using a trained model: from Python and the command line, in torch and from the ONNX file alone."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from scipy.special import softmax

import braintumor
from braintumor import predict
from braintumor.deployed import Describer, Inference, Novelty, run_batches, save_novelty
from braintumor.errors import UserError
from braintumor.export import save_onnx
from braintumor.images import load_squares
from braintumor.models import Architecture
from braintumor.novelty import fit_novelty
from braintumor.weights import Description, load_model, save_model
from tests.conftest import PROJECT, full_disk
from tests.test_scans import write_dicom

SIZE, TEMPERATURE = 32, 0.5
CLASSES = ("wet", "dry")
# Neither torch nor what it is trained and explained with.
BLOCKED = ["torch", "torchvision", "captum", "sklearn", "scipy", "pandas", "matplotlib", "safetensors"]


def picture(rng, white):
    """A bright blob left or right on dark ground: what the model is made for."""
    image = rng.normal(30, 5, (60, 80))
    image[20:40, 10 + 40 * white : 30 + 40 * white] += 150
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of models as the pipeline leaves it, and scans beside it."""
    place = tmp_path_factory.mktemp("use")
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    files = [place / "scans" / f"{i:02}.png" for i in range(80)]
    files[0].parent.mkdir()
    for file, label in zip(files, labels, strict=True):
        Image.fromarray(picture(rng, label)).save(file)
    Image.fromarray(rng.integers(0, 256, (90, 90), np.uint8)).save(place / "noise.png")
    load_squares(files, place / "images.npy", SIZE, crop=False, letterbox=True, workers=1)
    squares = np.load(place / "images.npy")
    torch.manual_seed(0)
    architecture = Architecture.named("resnet", [8, 16], None, 0.5, SIZE, 2)
    described = Description(
        architecture, CLASSES, {"size": SIZE, "crop": False, "fit": "letterbox"}, 0.15, 0.2, {}
    )
    model = architecture.build().train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    images = (torch.from_numpy(squares)[:, None] / 255 - 0.15) / 0.2
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), torch.from_numpy(labels)).backward()
        optimizer.step()
    model.eval()
    models = place / "models"
    save_model(model.state_dict(), described, models / "model.safetensors", models / "model.json")
    (models / "calibration.json").write_text(json.dumps({"temperature": TEMPERATURE}))
    describer = Describer(model, 0.15, 0.2, 2)
    _, features = run_batches(describer, squares, 32)
    novelty = fit_novelty(features[:60], labels[:60], features[60:], 0.02)
    save_novelty(novelty, models / "model.safetensors", models / "novelty.safetensors")
    save_onnx(
        Inference(describer, novelty), SIZE, CLASSES, described.preprocess, TEMPERATURE, models / "model.onnx"
    )
    return place


@pytest.fixture(params=["models", "models/model.onnx"])
def model(folder, request):
    return folder / request.param


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in a folder; returns what it prints on stdout and stderr."""

    def command(folder, *arguments, code=0):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            predict.main()
        output, errors = capsys.readouterr()
        if isinstance(ended.value.code, str):  # which the interpreter prints
            errors += ended.value.code + "\n"
        assert (ended.value.code if isinstance(ended.value.code, int) else 1) == code, errors
        return output, errors

    return command


def run_without(modules, folder, *arguments):
    """Run the command in a process that cannot import some modules."""
    script = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({modules}));"
        "runpy.run_module('braintumor.predict', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {"PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_onnx_file_gives_what_torch_gives(folder):
    squares = np.load(folder / "images.npy")
    squares = np.concatenate([squares, np.random.default_rng(1).integers(0, 256, squares.shape, np.uint8)])
    logits, novelty = braintumor.load(folder / "models").run(squares)
    other_logits, other_novelty = braintumor.load(folder / "models/model.onnx").run(squares)
    assert logits.shape == (160, 2) and novelty.shape == (160,)
    assert other_logits == pytest.approx(logits, abs=1e-4)
    assert other_novelty == pytest.approx(novelty, rel=1e-4)


def test_equal_models_give_equal_bytes_that_name_no_place_of_this_machine(folder, tmp_path):
    model, described = load_model(folder / "models/model.safetensors", folder / "models/model.json")
    describer = Describer(model, described.mean, described.deviation, 2)
    squares = np.load(folder / "images.npy")
    _, features = run_batches(describer, squares, 32)
    novelty = fit_novelty(features[:60], np.arange(60) % 2, features[60:], 0.02)
    save_novelty(novelty, folder / "models/model.safetensors", tmp_path / "novelty.safetensors")
    save_onnx(
        Inference(describer, novelty), SIZE, CLASSES, described.preprocess, TEMPERATURE, tmp_path / "model.onnx"
    )
    for name in ("novelty.safetensors", "model.onnx"):
        assert (tmp_path / name).read_bytes() == (folder / "models" / name).read_bytes()
    content = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in content and str(PROJECT).encode() not in content


def test_the_onnx_file_says_what_goes_in_and_out(folder):
    graph = onnx.load(folder / "models/model.onnx").graph
    (given,) = graph.input
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in given.type.tensor_type.shape.dim] == [0, 1, SIZE, SIZE]  # 0 is any
    assert [output.name for output in graph.output] == ["logits", "novelty"]


def test_probabilities_are_calibrated_and_the_classes_right(folder, model):
    predictor = braintumor.load(model)
    squares = np.load(folder / "images.npy")[60:]
    logits, _ = predictor.run(squares)
    said = predictor.predict_squares(squares)
    shares = softmax(logits / TEMPERATURE, axis=1)
    known = [one for one in said if not one.unlike_training]
    assert len(known) >= 18
    for i, one in enumerate(said):
        assert list(one.logits.values()) == pytest.approx(logits[i].tolist())
        if not one.unlike_training:
            assert list(one.probabilities) == list(CLASSES)
            assert list(one.probabilities.values()) == pytest.approx(shares[i].tolist())
            assert one.label == CLASSES[i % 2] and one.probability == pytest.approx(shares[i].max())


def test_an_image_is_the_same_in_every_form(folder, model):
    predictor = braintumor.load(model)
    (expected,) = predictor.predict_squares(np.load(folder / "images.npy")[:1])
    image = Image.open(folder / "scans/00.png")
    grey = np.asarray(image)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # shown turned back
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    for form in (image, image.convert("RGB"), image.convert("RGBA"), grey, colour, turned):
        assert predictor.predict(form).logits == pytest.approx(expected.logits, abs=1e-5)
    # Wider numbers are stretched, so that only their order and their distances count.
    wide = [predictor.predict(form).logits for form in (grey.astype(np.uint16) * 9, grey / 7, grey - 300.0)]
    assert wide[1] == pytest.approx(wide[0], abs=1e-2) and wide[2] == pytest.approx(wide[0], abs=1e-2)


@pytest.mark.parametrize(
    "image", [np.zeros((3, 4, 5)), np.zeros((3, 4, 3)), np.zeros(4), np.zeros((2, 2), complex)]
)
def test_an_array_that_is_no_image_is_an_error(folder, image):
    with pytest.raises(ValueError, match="an image is"):
        braintumor.load(folder / "models/model.onnx").predict(image)


def test_what_the_model_was_not_made_for_has_no_class(folder, model):
    predictor = braintumor.load(model)
    rng = np.random.default_rng(2)
    inside = np.pad(rng.integers(0, 256, (40, 50), np.uint8), ((10, 10), (15, 15)))
    dark = rng.normal(8, 3, (60, 80)).clip(0, 255).astype(np.uint8)
    even = (np.full((60, 80), grey, np.uint8) for grey in (0, 5, 255))
    for image in (rng.integers(0, 256, (60, 80), np.uint8), inside, dark, *even):
        said = predictor.predict(image)
        assert said.unlike_training and said.novelty > 1
        assert said.label is None and said.probability is None and said.probabilities is None


def test_a_table_for_people(folder, model, run):
    output, errors = run(folder, "scans/0[01].png", "--model", model)
    header, first, second, *rest = output.splitlines()
    assert header.split() == ["image", "class", *CLASSES, "novelty"]
    assert first.split()[:2] == ["scans/00.png", "wet"] and second.split()[:2] == ["scans/01.png", "dry"]
    assert rest == ["", "Research only, not a medical device."] and errors == ""


def test_json_and_csv_say_the_same(folder, model, run):
    said = json.loads(run(folder, "scans", "noise.png", "--model", model, "--json")[0])
    table = list(csv.DictReader(run(folder, "scans", "noise.png", "--model", model, "--csv")[0].splitlines()))
    assert [one["image"] for one in said] == [f"scans/{i:02}.png" for i in range(80)] + ["noise.png"]
    predictor = braintumor.load(model)
    expected = predictor.predict_squares(np.load(folder / "images.npy"))
    for one, right in zip(said, expected, strict=False):
        assert one["logits"] == pytest.approx(right.logits, abs=1e-4)
        assert one["class"] == right.label and one["unlike_training"] == right.unlike_training
    assert said[-1]["class"] is said[-1]["probability"] is said[-1]["probabilities"] is None
    assert table[-1]["class"] == table[-1]["probability"] == table[-1]["calibrated_dry"] == ""
    for one, row in zip(said, table, strict=True):
        assert row["image"] == one["image"] and row["unlike_training"] == str(one["unlike_training"])
        assert float(row["novelty"]) == pytest.approx(one["novelty"], rel=1e-3)
        if one["class"]:
            assert row["class"] == one["class"]
            assert float(row["calibrated_dry"]) == pytest.approx(one["probabilities"]["dry"], rel=1e-5)


def test_the_onnx_file_alone_is_enough_without_torch(folder, tmp_path):
    (tmp_path / "model.onnx").write_bytes((folder / "models/model.onnx").read_bytes())
    grey = np.asarray(Image.open(folder / "scans/00.png"))
    write_dicom(tmp_path / "a.dcm", grey, WindowCenter=128, WindowWidth=256)
    nibabel.save(nibabel.Nifti1Image(np.flip(grey.T)[:, :, None].copy(), np.eye(4)), tmp_path / "a.nii.gz")
    Image.fromarray(grey).save(tmp_path / "a.png")
    done = run_without(BLOCKED, tmp_path, "--model", "model.onnx", "a.png", "a.dcm", "a.nii.gz", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    picture, dicom, _ = json.loads(done.stdout)
    (expected,) = braintumor.load(folder / "models").predict_squares(np.load(folder / "images.npy")[:1])
    assert picture["logits"] == pytest.approx(expected.logits, abs=1e-4)
    assert dicom["logits"] == picture["logits"]


def test_torchs_model_without_torch_is_one_line(folder):
    done = run_without(["torch"], folder, "scans/00.png")
    assert done.returncode == 1
    assert done.stderr == "error: models: needs torch, which is not installed; give an .onnx file\n"


def test_an_onnx_file_without_onnxruntime_is_one_line(folder):
    done = run_without(["onnxruntime"], folder, "scans/00.png", "--model", "models/model.onnx")
    assert done.returncode == 1
    assert done.stderr == "error: models/model.onnx: needs onnxruntime, which is not installed; pip install it\n"


def test_the_package_itself_imports_next_to_nothing():
    script = "import sys; before = set(sys.modules); import braintumor; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert not {"numpy", "PIL", "torch", "onnxruntime"} & set(eval(done.stdout))


def test_slices_of_a_volume_are_named(folder, tmp_path, run):
    grey = np.asarray(Image.open(folder / "scans/01.png"))
    frames = np.stack([grey] * 12)
    write_dicom(tmp_path / "a.dcm", frames, WindowCenter=128, WindowWidth=256)
    model = folder / "models/model.onnx"
    said = json.loads(run(tmp_path, "a.dcm", "--json", "--model", model, "--slices", "2")[0])
    assert [one["slice"] for one in said] == [5, 8]
    assert len(json.loads(run(tmp_path, "a.dcm", "--json", "--model", model, "--slices", "all")[0])) == 12
    assert "a.dcm slice 4" in run(tmp_path, "a.dcm", "--model", model)[0]
    assert (
        "must be a number from 1 or all, got '0'"
        in run(tmp_path, "a.dcm", "--model", model, "--slices", "0", code=2)[1]
    )


def test_what_cannot_be_read_is_a_line_each_after_the_others_are_done(folder, tmp_path, model, run):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.dcm").write_text("hello")
    (tmp_path / "nothing").mkdir()
    Image.open(folder / "scans/00.png").save(tmp_path / "z[1].png")
    places = ["empty.png", "text.dcm", "none.png", "no*.jpg", "nothing", "z[1].png"]
    output, errors = run(tmp_path, *places, "--model", model, code=1)
    assert "z[1].png  wet" in output
    lines = errors.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == places[:-1]
    assert all(line.startswith("error: ") for line in lines)
    assert "Traceback" not in run(tmp_path, "empty.png", "--model", model, "--json", code=1)[1]


def test_links_in_a_folder_are_followed_once(folder, tmp_path, run):
    (tmp_path / "own/a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "scans/00.png", tmp_path / "elsewhere/0.png")
    (tmp_path / "own/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "own/a/circle").symlink_to(tmp_path / "own")
    said = json.loads(run(folder, tmp_path / "own", "--json")[0])
    assert [one["image"] for one in said] == [f"{tmp_path}/own/b/0.png"]


def test_a_disk_that_is_full_is_an_error_of_the_file(folder, tmp_path):
    novelty = Novelty(torch.zeros(400), torch.zeros(400, 2), torch.zeros(2, 2), torch.ones(()))
    file = tmp_path / "novelty.safetensors"
    with full_disk(1000), pytest.raises(OSError) as caught:
        save_novelty(novelty, folder / "models/model.safetensors", file)
    assert caught.value.filename == str(file) and not list(tmp_path.iterdir())


def make_folders(scan, place, names, monkeypatch, owner, call, forbidden):
    """Put a scan into each folder, and let a call refuse some paths: root may read what a mode forbids."""
    for name in names:
        (place / name).mkdir()
        shutil.copy(scan, place / name)
    permitted = getattr(owner, call)

    def refuse(path):
        if forbidden(Path(path)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return permitted(path)

    monkeypatch.setattr(owner, call, refuse)


def test_a_folder_that_cannot_be_read_is_named_after_the_others_are_done(folder, tmp_path, monkeypatch):
    scan, hidden = folder / "scans/00.png", tmp_path / "b"
    make_folders(scan, tmp_path, "abc", monkeypatch, os, "scandir", lambda path: path == hidden)
    problems = []
    found = predict.find_scans(str(tmp_path), problems)
    assert found == [tmp_path / "a/00.png", tmp_path / "c/00.png"]
    assert problems == [f"{hidden}: Permission denied"]
    assert predict.find_scans(f"{tmp_path}/**", problems) == found
    assert problems[1:] == problems[:1]
    assert predict.find_scans(str(hidden), problems) == [] and len(problems) == 3


def test_a_folder_that_may_be_listed_and_no_more_costs_only_what_is_in_it(folder, tmp_path, monkeypatch):
    scan, hidden = folder / "scans/00.png", tmp_path / "b"
    make_folders(scan, tmp_path, "ab", monkeypatch, Path, "is_file", lambda path: path.parent == hidden)
    problems = []
    assert predict.find_scans(str(tmp_path), problems) == [tmp_path / "a/00.png"]
    assert problems == [f"{hidden}/00.png: Permission denied"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system refuses the name")
def test_names_that_cannot_be_printed_or_opened_are_no_traceback(folder, tmp_path):
    (tmp_path / "own").mkdir()
    shutil.copy(folder / "scans/00.png", os.fsencode(tmp_path / "own") + b"/M\xfcller.png")
    done = subprocess.run(
        [sys.executable, "-m", "braintumor.predict", tmp_path / "own", "a" * 300, "--model", "models"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "/own/M\\udcfcller.png" in done.stdout
    assert done.stderr == f"error: {'a' * 300}: File name too long\n"
    assert done.returncode == 1


def test_a_picture_too_large_for_the_memory_is_a_line(folder, run, monkeypatch):
    read = predict.read_slices

    def read_or_not(file, *arguments):
        if file.name == "01.png":
            raise MemoryError
        return read(file, *arguments)

    monkeypatch.setattr(predict, "read_slices", read_or_not)
    output, errors = run(folder, "scans/00.png", "scans/01.png", "scans/02.png", code=1)
    assert "scans/00.png" in output and "scans/02.png" in output
    assert errors == "error: scans/01.png: is too large for this machine's memory\n"


def test_a_folder_is_read_at_any_depth_without_what_is_no_scan(folder, tmp_path, run):
    for name in ("b/2.png", "a/1.png", "0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(folder / "scans/00.png").save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("hello")
    said = json.loads(run(folder, tmp_path, "--json")[0])
    assert [one["image"] for one in said] == [f"{tmp_path}/{name}" for name in ("0.png", "a/1.png", "b/2.png")]
    # A pattern may match folders, and files in them once more.
    names = [f"{tmp_path}/{name}" for name in ("a/1.png", "b/2.png")]
    (tmp_path / "c").mkdir()  # a folder without a scan takes nothing from the others
    for pattern in ("[abc]", "[abc]/**"):
        said = json.loads(run(folder, tmp_path / pattern, "--json")[0])
        assert [one["image"] for one in said] == names


def test_overlays_lie_over_what_speaks_for_the_class(folder, tmp_path, run):
    run(folder, "scans/00.png", "scans/01.png", "noise.png", "--overlay", tmp_path / "over")
    squares = np.load(folder / "images.npy")
    files = sorted((tmp_path / "over").rglob("*.png"))
    names = [file.relative_to(tmp_path / "over").as_posix() for file in files]
    assert names == ["scans/00.png.png", "scans/01.png.png"]  # none of the noise
    for file, square in zip(files, squares, strict=False):
        drawn = np.asarray(Image.open(file)).astype(int)
        assert drawn.shape == (SIZE, 2 * SIZE, 3)
        assert (drawn[:, :SIZE] == square[:, :, None]).all()
        assert (drawn[:, SIZE:] != square[:, :, None]).any()


def test_overlays_of_an_onnx_file_are_refused(folder, tmp_path, run):
    arguments = ("scans/00.png", "--model", "models/model.onnx", "--overlay", tmp_path / "over")
    assert "error: --overlay: Grad-CAM needs torch" in run(folder, *arguments, code=1)[1]


def test_overlays_keep_their_folders_and_stay_in_theirs(folder, tmp_path, run):
    deep = tmp_path / ("a" * 130) / ("b" * 130)  # together longer than a file's name may be
    places = [tmp_path / "a/b.png", tmp_path / "a_b.png", deep / "c.png"]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / "scans/00.png").save(place)
    (tmp_path / "here").mkdir()
    model = "--model", folder / "models"
    run(tmp_path / "here", "../a/b.png", "../a_b.png", deep / "c.png", *model, "--overlay", "over")
    drawn = [file.relative_to(tmp_path / "here/over") for file in (tmp_path / "here").rglob("*.png")]
    expected = ["_/a/b.png.png", "_/a_b.png.png", f"{str(deep).strip('/')}/c.png.png"]
    assert sorted(map(str, drawn)) == sorted(expected)


def test_answers_are_given_also_where_no_overlay_can_be_written(folder, tmp_path, run):
    (tmp_path / "file").write_text("in the way")
    output, errors = run(folder, "scans/00.png", "--overlay", tmp_path / "file", code=1)
    assert "scans/00.png  wet" in output
    assert errors.startswith(f"error: --overlay {tmp_path / 'file'}: ") and errors.count("\n") == 1


def test_novelty_of_other_weights_is_refused(folder, tmp_path):
    for other in (folder / "models").iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    model, described = load_model(tmp_path / "model.safetensors", tmp_path / "model.json")
    again = {name: value + 1 for name, value in model.state_dict().items()}
    save_model(again, described, tmp_path / "model.safetensors", tmp_path / "model.json")
    with pytest.raises(UserError, match=r"is of other weights than .*: run dvc repro export"):
        braintumor.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("calibration.json", None, "run dvc repro calibrate"),
        ("calibration.json", b'{"temperature": 0}', "is not over 0"),
        ("calibration.json", b"{}", "run dvc repro calibrate"),
        ("novelty.safetensors", None, "run dvc repro export"),
        ("novelty.safetensors", b"hello", "run dvc repro export"),
        ("model.safetensors", None, "there is no model; make repro trains one"),
        ("model.json", None, "are not a model that can be loaded"),
    ],
)
def test_a_folder_that_is_not_whole_is_one_line(folder, tmp_path, file, content, message):
    for other in (folder / "models").iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        braintumor.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_of_ours_is_one_line(folder, tmp_path):
    model = onnx.load(folder / "models/model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    for name, message in (
        ("foreign", "says nothing of its classes"),
        ("text", "is not a model that can be loaded"),
        ("none", "cannot be read: No such file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            braintumor.load(tmp_path / f"{name}.onnx")
        assert "\n" not in str(caught.value)
