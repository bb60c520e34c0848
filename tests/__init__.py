"""A package, for isic-cli installs one of the same name, which the processes of a test would find instead."""
