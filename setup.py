"""Builds the compiled core: each ichicore/**/*.pyx becomes one extension module.

A module names what it links with in its own `# distutils:` header (sources in csrc/, libraries).
ICHIBASE_DEBUG=1 builds with bounds checks, assertions and annotation, into a build folder of its
own, because Cython does not notice that a directive has changed.
"""

import copy
import multiprocessing
import os
import subprocess
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
DEBUG = os.environ.get("ICHIBASE_DEBUG") == "1"
CORES = os.cpu_count() or 1
FORKS = multiprocessing.get_start_method() == "fork"  # else each process would run this file
ALL_WARNINGS = ["-Wall", "-Wno-unused-function", "-Wno-unreachable-code"]


def libpq_include() -> list[str]:
    """The folder of libpq-fe.h, asked of pg_config, or none when there is no pg_config."""
    try:
        found = subprocess.run(["pg_config", "--includedir"], capture_output=True, text=True)
    except FileNotFoundError:
        return []
    return [found.stdout.strip()] if found.returncode == 0 else []


def extensions() -> list[Extension]:
    flags = ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g0", "-DNDEBUG"]
    found = []
    for path in sorted((ROOT / "ichicore").rglob("*.pyx")):
        relative = path.relative_to(ROOT)
        name = ".".join(relative.with_suffix("").parts)
        found.append(
            Extension(
                name,
                [str(relative)],
                include_dirs=["csrc", *libpq_include()],
                extra_compile_args=flags + ALL_WARNINGS,
                depends=[str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").glob("*.h"))],
            )
        )
    return found


class Build(build_ext):
    """Modules that are built at the same time may have a C source in common: each gets objects of
    its own, or one might be linked with an object that another is writing."""

    def build_extension(self, ext: Extension) -> None:
        own = copy.copy(self)
        own.build_temp = os.path.join(self.build_temp, ext.name)
        build_ext.build_extension(own, ext)


setup(
    cmdclass={"build_ext": Build},
    options={"build_ext": {"parallel": CORES}},
    ext_modules=cythonize(
        extensions(),
        build_dir=".build/debug" if DEBUG else ".build/release",
        nthreads=CORES if FORKS else 0,
        annotate=DEBUG,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": True,
            "auto_pickle": False,
            "embedsignature": True,
            "binding": True,
        },
    ),
)
