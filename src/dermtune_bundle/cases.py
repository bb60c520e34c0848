"""Training cases that a bundle may carry, so that an image can be shown beside those most like it."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from dermtune_bundle.errors import BundleError

EMBEDDINGS: Final = "cases.npy"
CASES: Final = "cases.json"
CASE_FILES: Final = (EMBEDDINGS, CASES)
NEAREST: Final = 5
_KEYS: Final = ("labels", "ids", "thumbnails")


@dataclass(frozen=True)
class SimilarCase:
    """A training case near to an image."""

    label: str
    """Its class."""
    similarity: float
    """Cosine of the two embeddings, at most 1."""
    image_id: str | None
    """None: the bundle does not tell."""
    thumbnail: bytes | None
    """JPEG; None: the bundle does not show it."""


@dataclass(frozen=True)
class Cases:
    """M training cases, in the order of their embeddings."""

    embeddings: NDArray[np.float32]
    """(M, F), of length one."""
    labels: Sequence[str]
    ids: Sequence[str] | None
    thumbnails: Sequence[bytes] | None

    def nearest(self, embedding: NDArray[np.float32], count: int = NEAREST) -> tuple[SimilarCase, ...]:
        """The cases most like an image, the nearest first.

        Args:
            embedding: (F,) of the image.
            count: of cases.
        """
        unit = embedding / max(float(np.linalg.norm(embedding)), 1e-12)
        # not by BLAS, whose threads and the graph's would get in each other's way
        similarity = np.einsum("mf,f->m", self.embeddings, unit)
        return tuple(
            SimilarCase(
                self.labels[row],
                float(similarity[row]),
                self.ids[row] if self.ids else None,
                self.thumbnails[row] if self.thumbnails else None,
            )
            for row in np.argsort(-similarity, kind="stable")[:count].tolist()
        )

    def to_files(self) -> dict[str, bytes]:
        """As a bundle carries them."""
        file = io.BytesIO()
        np.save(file, self.embeddings.astype(np.float16), allow_pickle=False)
        thumbnails = [base64.b64encode(one).decode() for one in self.thumbnails] if self.thumbnails else None
        rest = {"labels": list(self.labels), "ids": self.ids and list(self.ids), "thumbnails": thumbnails}
        return {EMBEDDINGS: file.getvalue(), CASES: (json.dumps(rest, ensure_ascii=False) + "\n").encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], classes: Sequence[str], *, source: str) -> Self | None:
        """What `to_files` gave; None where a bundle carries no cases.

        Args:
            files: the bundle's.
            classes: that its labels may name.
            source: what error messages call the bundle.

        Raises:
            BundleError: the cases are damaged or disagree.
        """
        if not {EMBEDDINGS, CASES} & files.keys():
            return None
        try:
            embeddings = np.load(io.BytesIO(files[EMBEDDINGS]), allow_pickle=False)
            values: dict[str, Any] = json.loads(files[CASES])
            labels, ids, coded = (values[key] for key in _KEYS)
            thumbnails = coded and [base64.b64decode(one, validate=True) for one in coded]
        except (KeyError, ValueError, TypeError, EOFError, RecursionError, MemoryError) as error:
            raise BundleError(f"{source}: {EMBEDDINGS} and {CASES} are no cases; export it again") from error
        columns = [column for column in (labels, ids, thumbnails) if column is not None]
        agree = (
            isinstance(embeddings, np.ndarray)
            and embeddings.dtype == np.float16
            and bool(np.isfinite(embeddings).all())
            and embeddings.ndim == 2  # noqa: PLR2004 (M, F)
            and all(isinstance(column, list) and len(column) == len(embeddings) for column in columns)
            and labels is not None
            and all(label in classes for label in labels)
            and all(isinstance(name, str) for name in ids or [])
        )
        if not agree:
            raise BundleError(f"{source}: {EMBEDDINGS} and {CASES} disagree; export it again")
        return cls(embeddings.astype(np.float32), labels, ids, thumbnails)
