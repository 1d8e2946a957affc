"""The version of this build."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("sluice")
except PackageNotFoundError:
    VERSION = "0.0.0+checkout"
