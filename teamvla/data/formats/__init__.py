"""Data sets of other formats: reading them as episodes, and writing episodes as them.

A format's module is imported when the format is asked for, and the package that it
wraps (pyarrow and av, h5py) when a file is opened: they are extras.
"""

from teamvla.data.formats.base import FORMATS as FORMATS
from teamvla.data.formats.base import ConvertConfig as ConvertConfig
from teamvla.data.formats.base import Target as Target
from teamvla.data.formats.conversion import convert as convert
from teamvla.data.formats.job import Conversion as Conversion
from teamvla.data.formats.mapping import MappingConfig as MappingConfig
from teamvla.data.formats.report import Report as Report
