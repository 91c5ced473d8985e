"""What the networks see: the numbers of notebook 1, from a data set's images."""

import numpy as np
import pandas as pd

from sqlib.training.examples import Dataset


def copies(data: Dataset) -> dict[str, int]:
    """How many validation and test images are pixel-for-pixel copies of a training image, by part."""
    known = {image.tobytes() for image in data.train_images.numpy()}
    parts = {"validation": data.validation_images, "test": data.test_images}
    return {part: sum(image.tobytes() in known for image in images.numpy()) for part, images in parts.items()}


def balance(counts: pd.DataFrame) -> str:
    """Whether all classes have the same number of training images, in words. counts: columns class and train."""
    train, names = counts["train"], counts["class"]
    if train.min() == train.max():
        return f"Every class has the same number of training images ({train.min():,})"
    least, most = names[train.argmin()], names[train.argmax()]
    return (
        f"The classes are not quite equal: from {train.min():,} training images ({least}) to {train.max():,} ({most})"
    )


def copied(repeated: dict[str, int]) -> str:
    """How many images are copies (of `copies`), in words."""
    if not any(repeated.values()):
        return "No validation or test image is a pixel-for-pixel copy of a training image"
    both = f"{repeated['validation']} validation and {repeated['test']} test images"
    return f"{both} are pixel-for-pixel copies of a training image: at most that many answers could come from copying"


def class_means(data: Dataset) -> np.ndarray:
    """(classes, height, width) mean training image of each class."""
    classes = range(len(data.classes))
    return np.stack([data.train_images[data.train_labels == label].double().mean(dim=0).numpy() for label in classes])


def most_alike(means: np.ndarray) -> tuple[int, int, float]:
    """(class, class, correlation) of the two classes whose mean images are most alike."""
    between = np.corrcoef(means.reshape(len(means), -1)) - 2 * np.eye(len(means))
    first, second = np.unravel_index(between.argmax(), between.shape)
    return int(first), int(second), float(between.max())


def nearest_mean_accuracy(data: Dataset, means: np.ndarray) -> float:
    """The share of validation images whose class is that of the nearest mean image."""
    flat, unseen = means.reshape(len(means), -1), data.validation_images.flatten(1).double().numpy()
    distance = (flat**2).sum(axis=1) - 2 * unseen @ flat.T  # squared distance to each mean, up to a constant an image
    return float((distance.argmin(axis=1) == data.validation_labels.numpy()).mean())
