"""Bring the data set in from Kaggle, a folder or zip, or the generator of phantoms; all of it or nothing."""

import shutil
from pathlib import Path

from braintumor.errors import UserError
from braintumor.files import replacing_folder
from braintumor.params import Data, load_params
from braintumor.phantom import make_phantom
from braintumor.sources import UnexpectedCount, copy_images, fetch_kaggle
from braintumor.tables import list_images
from stages import run


def main(raw: Path) -> None:
    params = load_params(Path("params.yaml")).data
    try:
        with replacing_folder(raw) as target:
            if params.source == "kaggle":
                bring_kaggle(params, raw.parent, target)
            elif params.source == "folder":
                copy_images(Path(params.folder).expanduser(), target)
            else:
                make_phantom(target, params.phantom_patients, params.seed)
    except OSError as error:  # no space, no permission, a link that leads nowhere
        raise UserError(f"{error.filename or raw}: {error.strerror or error}") from None
    images = list_images(raw)
    print(f"{raw}: {len(images)} images of {len({image.split('/')[1] for image in images})} classes")


def bring_kaggle(params: Data, folder: Path, target: Path) -> None:
    # archive.zip is no dependency in dvc.yaml, which would demand that it exists: it only stands in for the
    # network. The images are the same either way, and are checked in the same way.
    archive = folder / "archive.zip"
    if archive.exists():
        print(f"using {archive} in place of a download")
        copy_images(archive, target, params.images)
        return
    # Half a transfer stays here, unknown to DVC, for the next run to go on with.
    download = folder / "download"
    name = params.dataset.replace("/", "-")
    archive = fetch_kaggle(params.dataset, params.version, download / f"{name}-{params.version}")
    try:
        copy_images(archive, target, params.images)
    except UnexpectedCount:  # it may be data.images that is wrong
        raise
    except UserError:  # nobody goes on with a bad file
        shutil.rmtree(download)
        raise
    shutil.rmtree(download)


if __name__ == "__main__":
    run(main)
