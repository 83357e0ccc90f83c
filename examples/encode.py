"""Which images are alike? Encodes images with a trained run, and lists each one's nearest neighbor.

python examples/encode.py runs/quickstart photos/
"""

import pathlib

import numpy as np

import hjepa_jax


def main(folder: str, images: str) -> None:
    run = hjepa_jax.load(folder)
    files = sorted(path for path in pathlib.Path(images).rglob("*") if path.is_file())
    states = run.encode(files, progress=True)  # float32 [N, D]; one image gives [D]
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    similarity = unit @ unit.T - 2 * np.eye(len(files))  # an image is not its own neighbor
    for file, nearest in zip(files, similarity.argmax(axis=1)):
        print(f"{file.name} -> {files[nearest].name}")


if __name__ == "__main__":
    import sys

    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except hjepa_jax.UserError as error:
        sys.exit(str(error))
