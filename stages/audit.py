"""Read every image once: the manifest, its copies and patients, what cannot be read, and pictures of it all."""

from pathlib import Path

from braintumor import manifest as library
from braintumor import plots, sheets
from braintumor.errors import UserError
from braintumor.files import replacing_folder
from braintumor.params import load_params
from braintumor.tables import list_images, write_metrics, write_table
from stages import run, workers


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
    library.check_classes(path.split("/")[1] for path in paths)
    table, signatures, unreadable = library.inspect_images(raw, paths, params.max_pixels, workers())
    write_table(unreadable, quarantine)
    if not paths:
        raise UserError(f"{raw}: holds no image in Training/<class>/ or Testing/<class>/: run the stage download")
    if table.empty or len(unreadable) > params.max_quarantined * len(paths):
        raise UserError(
            f"audit: {len(unreadable)} of {len(paths)} images cannot be read, more than "
            f"audit.max_quarantined={params.max_quarantined:g} allows; {quarantine} lists each with its reason"
        )
    patients = None
    if params.patients:
        known = library.read_patients(Path(params.patients).expanduser(), paths)
        patients = known.reindex(table["path"])  # without what cannot be read
    table = library.add_groups(table, signatures, patients, params.similarity)
    write_table(table, manifest)
    summary = library.summarise(table, len(unreadable))
    write_metrics(summary, metrics)
    write_table(library.count_classes(table), classes)
    write_table(table[["folder", "width", "height"]], sizes)
    plots.save(plots.overview(table), overview)
    with replacing_folder(pictures) as folder:
        for name, figure in sheets.audit_sheets(table, raw):
            plots.save(figure, folder / f"{name}.png")
    print(library.describe(summary))


if __name__ == "__main__":
    run(main)
