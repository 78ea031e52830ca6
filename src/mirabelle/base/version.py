"""The version that was installed, where nothing else has to be imported to read it."""

from importlib import metadata

try:
    __version__ = metadata.version("mirabelle")
except metadata.PackageNotFoundError:  # a tree on the path that nobody installed
    __version__ = "0+unknown"
