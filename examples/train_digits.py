"""Train a classifier on handwritten digits that live in a database.

The images are stored once, on an embedded backend, and read back in shuffled batches, the next ones while the
loop works on one. Each epoch stores its weights under a key of its own, without waiting for that. At the end a
second session reads the last weights and measures with them again.

    python examples/train_digits.py [data folder]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

import tensorage

EPOCHS = 8
BATCH_SIZE = 64
LEARNING_RATE = 0.5
N_TRAIN = 1500  # the other 297 images are held out

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def features(images: Floats) -> Floats:
    """Each image as one row, with a constant 1 for the bias."""
    rows = images.reshape(len(images), -1) / 16
    return np.hstack([rows, np.ones((len(rows), 1), dtype=rows.dtype)])


def step(weights: Floats, images: Floats, labels: Labels) -> Floats:
    """The weights after one step of gradient descent on one batch."""
    x = features(images)
    error = softmax(x @ weights)
    error[np.arange(len(labels)), labels] -= 1
    return weights - LEARNING_RATE / len(labels) * (x.T @ error)


def accuracy(weights: Floats, images: Floats, labels: Labels) -> float:
    return float(np.mean((features(images) @ weights).argmax(axis=1) == labels))


def store_digits(store: tensorage.TensorStore) -> None:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order].astype(np.float32), digits.target[order].astype(np.int64)
    for name, rows in (("train", slice(N_TRAIN)), ("held out", slice(N_TRAIN, None))):
        store[f"digits/{name}/images"] = images[rows]
        store[f"digits/{name}/labels"] = labels[rows]


def train(store: tensorage.TensorStore) -> None:
    images, labels = store.open("digits/train/images"), store.open("digits/train/labels")
    held_out = store["digits/held out/images"], store["digits/held out/labels"]
    print(f"training on {len(images)} images of shape {images.shape[1:]}")
    batches = tensorage.batches(images, labels, batch_size=BATCH_SIZE, shuffle=True, seed=1)
    weights = np.zeros((8 * 8 + 1, 10), dtype=np.float32)
    with store.background() as background:
        for epoch in range(EPOCHS):
            for x, y in batches:
                weights = step(weights, x, y)
            background[f"digits/weights/{epoch}"] = weights
            of_epoch = accuracy(weights, *held_out)
            print(f"epoch {epoch + 1}: accuracy on {len(held_out[1])} held-out images {of_epoch:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on digits that live in a database.")
    parser.add_argument("data_dir", nargs="?", type=Path, help="where the embedded backend keeps its data")
    data_dir = parser.parse_args().data_dir

    session = tensorage.local(data_dir)
    print(f"embedded backend at {session.backend_url}")
    # The example may run again on the same data: then it replaces what it stored before.
    store = tensorage.TensorStore(session, quiet=True, allow_overwrite=True)
    store_digits(store)
    train(store)

    other = tensorage.local(data_dir)()  # a login of its own, as another process would have
    weights = other[f"digits/weights/{EPOCHS - 1}"]
    images, labels = other["digits/held out/images"], other["digits/held out/labels"]
    print(f"read back in a second session: accuracy {accuracy(weights, images, labels):.3f}")
    print("stored:", ", ".join(sorted(other)))


if __name__ == "__main__":
    main()
