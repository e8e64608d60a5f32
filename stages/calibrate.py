"""Fit the temperature of the network's probabilities on the validation rows."""

from pathlib import Path

from braintumor.calibration import fit_temperature, score_calibration
from braintumor.device import choose_device
from braintumor.inference import subset_batches
from braintumor.params import load_params
from braintumor.tables import VALIDATION, read_images, read_table, write_metrics
from braintumor.training import predict
from braintumor.weights import load_model
from stages import run


def main(images: Path, split: Path, weights: Path, description: Path, calibration: Path) -> None:
    params = load_params(Path("params.yaml")).evaluate
    device = choose_device(params.device, params.threads)
    model, described = load_model(weights, description)
    table = read_table(split)
    batches = subset_batches(table, read_images(images, table), VALIDATION, described, params.batch_size, device)
    logits, labels = predict(model.to(device), batches).numpy(), batches.labels.cpu().numpy()
    temperature = round(fit_temperature(logits, labels), 6)
    scores = score_calibration(logits, labels, temperature, params.bins)
    write_metrics({"temperature": temperature, "images": len(labels)} | scores, calibration)
    if (logits.argmax(axis=1) == labels).all():
        print("no validation image is wrong: the temperature stays 1")
    print(
        f"temperature {temperature:.3f} on {len(labels)} validation images: "
        f"log-loss {scores['log_loss_before']:.3f} before, {scores['log_loss_after']:.3f} after"
    )


if __name__ == "__main__":
    run(main)
