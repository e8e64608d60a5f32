"""Read every image once: the manifest, its copies and patients, what cannot be read, and pictures of it all."""

import os
from pathlib import Path

from braintumor import manifest as library
from braintumor import plots, sheets
from braintumor.errors import UserError
from braintumor.params import load_params
from braintumor.tables import list_images
from stages import run, write_csv, write_json


def main(
    raw: Path,
    manifest: Path,
    quarantine: Path,
    metrics: Path,
    classes: Path,
    sizes: Path,
    overview: Path,
    pictures: Path,
) -> None:
    params = load_params(Path("params.yaml")).audit
    paths = list_images(raw)
    table, signatures, unreadable = library.inspect_images(raw, paths, params.max_pixels, os.cpu_count() or 1)
    write_csv(unreadable, quarantine)
    if len(unreadable) > params.max_quarantined * len(paths):
        raise UserError(
            f"audit: {len(unreadable)} of {len(paths)} images cannot be read, more than "
            f"audit.max_quarantined={params.max_quarantined:g} allows; {quarantine} lists each with its reason"
        )
    patients = library.read_patients(Path(params.patients), table["path"]) if params.patients else None
    table = library.add_groups(table, signatures, patients, params.similarity)
    write_csv(table, manifest)
    summary = library.summarise(table, len(unreadable))
    write_json(summary, metrics)
    write_csv(library.count_classes(table), classes)
    write_csv(table[["folder", "width", "height"]], sizes)
    plots.save(plots.overview(table), overview)
    pictures.mkdir(parents=True, exist_ok=True)
    for name, figure in sheets.audit_sheets(table, raw):
        plots.save(figure, pictures / f"{name}.png")
    print(
        f"{summary['images']} images, {summary['distinct_images']} distinct, {len(unreadable)} unreadable; "
        f"{summary['copied_testing_images']} of {summary['testing_images']} test images are copies of a training "
        f"image; {summary['patients_in_both']} of {summary['patients_in_testing']} known test patients are in "
        f"training; {summary['contradictory_copy_groups']} copy groups with contradictory labels"
    )


if __name__ == "__main__":
    run(main)
