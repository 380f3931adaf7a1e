"""Put a trained model into the package: `python tools/ship.py RUN CALIBRATION TEST NAME`.

RUN is a run or bundle folder. CALIBRATION and TEST are stores that it was not trained on. The model is calibrated on
the first, written with 16-bit weights if these change no probability of the second by more than 0.001, and evaluated on
the second. The fits of lens_residual check the classes of a network that takes images. Then describe the model in
docs/cards/words/NAME.yaml and run `python tools/cards.py`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from darklens import Bundle
from darklens.data.store import Store
from darklens.evaluation.calibrate import calibrate_on
from darklens.evaluation.evaluate import evaluate
from darklens.executors import usable_cores
from darklens.files import write_json
from darklens.locate import SHIPPED

LARGEST_CHANGE = 1e-3


def main(run: str, calibration: str, test: str, name: str) -> None:
    bundle = Bundle.load(run)
    if bundle.fit_settings is None:
        bundle = bundle.with_companions(checked_by="lens_residual")
    bundle = calibrate_on(bundle, Store(Path(calibration)), workers=usable_cores())
    target, results = Path(str(SHIPPED)) / name, []
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / size / name for size in ("full", "half")]
        for folder in folders:
            bundle.save(folder, half=folder.parent.name == "half")
            results.append(evaluate(Bundle.load(folder), folder, Store(Path(test)), workers=usable_cores()))
        full, half = (np.asarray(result.probabilities) for result in results)
        change = np.abs(full - half).max()
        print(f"16-bit weights change no probability by more than {change:.2g}")
        chosen = int(change <= LARGEST_CHANGE)
        write_json(folders[chosen] / "eval.json", results[chosen].evaluation)
        shutil.copytree(folders[chosen], target, dirs_exist_ok=True)
    print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
