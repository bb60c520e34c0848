"""The errors that a person can do something about.

DermtuneError            the root: the command line prints its message and exits with 2
├── ImageError           an image file that cannot be used: replace or remove it
├── BundleError          a bundle that is damaged, incomplete or of another version: fetch it again
└── (dermtune.errors)    the training side's branches
"""

import re


def without_password(text: str) -> str:
    """A text whose URLs do not tell who may enter, and how."""
    return re.sub(r"//[^/@\s]*@", "//…@", text)


class DermtuneError(Exception):
    """Root of the tree; its message says what is wrong, where, and what to do."""

    def __str__(self) -> str:
        """The message, fit to be logged."""
        return without_password(super().__str__())


class ImageError(DermtuneError):
    """An image file that cannot be used; the message is the reason, fit for a quarantine list."""


class BundleError(DermtuneError):
    """A bundle that is damaged, incomplete or of another version."""
