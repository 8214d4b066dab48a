"""`Sample`, and the loaders of every data set."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """One question about one picture."""

    id: str
    image: str | bytes | Image.Image | Callable[[], Image.Image]  # decoded or drawn only by open()
    question: str  # without options and without prompt boiler-plate
    answer: str  # gold: text, the right option's text, a number ...
    options: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()  # target boxes x1, y1, x2, y2 in ORIGINAL pixels
    source: str = "toy"
    tool: bool = True  # False: a single turn without the zoom prompt (ThinkLite rows)
    meta: dict = field(default_factory=dict)

    def open(self) -> Image.Image:
        """The picture: RGB, upright (EXIF orientation applied). Raises ValueError that names the sample."""
        try:
            if callable(self.image):
                picture = self.image()
            elif isinstance(self.image, Image.Image):
                picture = self.image
            else:
                picture = Image.open(io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image)
            return ImageOps.exif_transpose(picture).convert("RGB")
        except Exception as error:  # PIL raises half a dozen kinds; which one does not matter to the user
            raise ValueError(
                f"sample {self.id}: its picture can't be read ({type(error).__name__}: {error})"
            ) from error

    def text(self) -> str:
        """The question as the model gets it: options, if any, on lettered lines.

        >>> print(Sample("1", b"", "Which?", "a dog", options=("a cat", "a dog")).text())
        Which?
        A. a cat
        B. a dog
        """
        return "\n".join(
            [self.question] + [f"{chr(65 + i)}. {option}" for i, option in enumerate(self.options)]
        )


DATASETS = ("toy", "toy-mixture")  # Hub data sets and folders follow in `load`


def load(
    name: str, *, split: str | None = None, limit: int | None = None, seed: int = 0, root: str | None = None
) -> list[Sample]:
    """The samples of a data set.

    name: "toy" or "toy-mixture". split: "train" (default) or "test": no picture is in both. limit: how many
    samples (the toy world has no end: default 1,000). seed: picks other pictures. root: unused by the toy
    sets. Raises ValueError for an unknown name.
    """
    if name not in DATASETS:
        hint = " (a folder of your own is not supported yet)" if Path(name).exists() else ""
        raise ValueError(f"unknown data set {name!r}{hint}; known: {', '.join(DATASETS)}")
    from toy.world import samples  # here, because the toy builds on this module

    if split not in (None, "train", "test"):
        raise ValueError(f"data set {name!r} has the splits 'train' and 'test', not {split!r}")
    return samples(
        1000 if limit is None else limit, seed=seed, split=split or "train", mixture=name == "toy-mixture"
    )
