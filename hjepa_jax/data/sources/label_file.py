"""Labels of images from a CSV file: one row for each, with its file name and its label."""

from __future__ import annotations

import csv
import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from hjepa_jax.data.sources.base import NO_LABEL, ImageSource
from hjepa_jax.data.sources.derived import RelabeledSource
from hjepa_jax.data.sources.splits import say_once
from hjepa_jax.errors import DataError, counted
from hjepa_jax.storage.files import printable, read_regular

_FILES = ("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path")
_FILES += ("image_name", "image_id", "name", "id", "img")
_LABELS = ("label", "labels", "class", "class_name", "target", "category", "species", "y")
_MOST_BYTES = 1 << 30
_SHOWN = 3


class LabelFile:
    """The labels in a CSV file, matched to images by their paths or names.

    Attributes:
      class_names: the distinct labels, in the order of numbers if all are numbers.
    """

    def __init__(self, path: pathlib.Path, images: Sequence[str]):
        """Reads a file.

        Args:
          path: CSV file with a header, separated by commas, semicolons, or tabs. Its columns of
            file names and labels are recognized by their titles; two columns may have any titles.
          images: paths of all images of the dataset, relative to its folder.

        Raises:
          DataError: if it cannot be read, lacks a column, repeats an image, or names one that does
            not exist.
        """
        self._path = path
        self._numbers: dict[str, int] = {}
        rows = self._rows()
        self.class_names = tuple(_in_order({label for _, label in rows if label}))
        known = {name: number for number, name in enumerate(self.class_names)}
        found, missing = _Names(images), []
        for name, label in rows:
            image = found.image(name)
            if image is None:
                missing.append(name)
            elif image in self._numbers:
                raise self._error(f"lists the image {printable(image)} twice: keep one of its rows")
            else:
                self._numbers[image] = known.get(label, NO_LABEL)
        if missing:
            examples = ", ".join(map(printable, missing[:_SHOWN]))
            more = ", ..." if len(missing) > _SHOWN else ""
            there = printable(images[0]) if images else "none"
            raise self._error(
                f"lists {counted(len(missing), 'image')} that the data does not have ({examples}"
                f"{more}): give paths relative to config.data.root, or names of files that are "
                f"unique there, such as {there}"
            )

    def applied(self, source: ImageSource, names: Sequence[str]) -> ImageSource:
        """Returns the images, with these names, labeled by the file; those not listed have none."""
        labels = np.array([self._numbers.get(name, NO_LABEL) for name in names], np.int32)
        without = int(np.count_nonzero(labels == NO_LABEL))
        rest = f", {without} of {len(labels)} images without a label" if without else ""
        classes = counted(len(self.class_names), "class", "classes")
        say_once(f"labels from {printable(self._path)}: {classes}{rest}")
        return RelabeledSource(source, labels, tuple(map(printable, self.class_names)))

    def _error(self, what: str) -> DataError:
        return DataError(f"config.data.labels: {printable(self._path)} {what}.")

    def _rows(self) -> list[tuple[str, str]]:
        """Returns the file name and the label of each row."""
        try:
            text = read_regular(self._path, _MOST_BYTES).decode("utf-8-sig")
        except FileNotFoundError:
            raise self._error(
                "does not exist; the field is 'auto', 'folders', 'none', or the path of a CSV file"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise self._error(f"cannot be read ({error})") from error
        first = text.split("\n", 1)[0]
        separator = max(",;\t", key=first.count)
        try:
            lines = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if any(row)]
        except csv.Error as error:
            raise self._error(f"is no CSV file ({error})") from error
        if len(lines) < 2:
            raise self._error("needs a line of titles and a row for each image")
        titles = [title.strip().lower() for title in lines[0]]
        file, label = self._columns(titles)
        short = next((n for n, row in enumerate(lines, 1) if len(row) != len(titles)), None)
        if short is not None:
            raise self._error(
                f"has {len(lines[short - 1])} columns in row {short}, but {len(titles)} titles"
            )
        return [(row[file].strip(), row[label].strip()) for row in lines[1:]]

    def _columns(self, titles: Sequence[str]) -> tuple[int, int]:
        """Returns the columns of file names and of labels."""
        chosen = [
            [n for n, title in enumerate(titles) if title in known] for known in (_FILES, _LABELS)
        ]
        if len(titles) == 2 and not (chosen[0] == [1] or chosen[1] == [0]):
            return 0, 1
        if any(len(found) != 1 for found in chosen):
            raise self._error(
                f"has the columns {', '.join(map(printable, titles))}: call exactly one of them "
                f"'file' and one 'label'"
            )
        return chosen[0][0], chosen[1][0]


class _Names:
    """Finds images by path, or by a name that is unique, with or without its ending."""

    def __init__(self, images: Sequence[str]):
        self._paths = set(images)
        self._short: dict[str, str | None] = {}
        for image in images:
            base = os.path.basename(image)
            for name in {base, os.path.splitext(base)[0], os.path.splitext(image)[0]}:
                self._short[name] = None if name in self._short else image

    def image(self, name: str) -> str | None:
        """Returns the path of an image; None if there is none, or more than one."""
        plain = os.path.normpath(name.replace("\\", "/")) if name else name
        return plain if plain in self._paths else self._short.get(plain)


def _in_order(labels: set[str]) -> list[str]:
    """Returns labels sorted, by value if all are whole numbers."""
    whole = all(label.isascii() and label.isdigit() and len(label) < 19 for label in labels)
    return sorted(labels, key=lambda label: (int(label) if whole else 0, label))
